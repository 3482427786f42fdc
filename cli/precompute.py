"""`ddx precompute`: encode images and captions into a store."""

from __future__ import annotations

import click

from ddx.cli import suggestions
from ddx.cli.options import Invocation, config_options
from ddx.data.config import PrecomputeConfig


@click.command(
    epilog="""\b
Example:
  ddx precompute laion.parquet
  ddx precompute 'part-*.parquet' --teacher sana-tiny --batch-size 16
  ddx precompute '{00000..00099}.tar' --where "width >= 512" --limit 10000
  ddx precompute 's3://bucket/part-*.parquet' --max-aspect 2
  ddx precompute more.parquet --out runs/data/laion-sana-600m-512.zarr --append
"""
)
@click.argument("sources", nargs=-1, metavar="SOURCE...", shell_complete=suggestions.files)
@config_options(PrecomputeConfig)
def command(invocation: Invocation, sources: tuple[str, ...]) -> int:
    """Encode images and captions into a store of latents and embeddings.

    SOURCE is a parquet file, a WebDataset tar, an ffrecord file, a CSV, TSV or JSONL list, a folder of these or of
    images, or a pattern. It is on a disk or in an object store (s3://, gs://, az://). Each row has a caption, and a
    URL, a path or the bytes of an image.

    Rows that fail are recorded and skipped. Run the same command again to continue after a stop, with --verify to check
    the existing parts first. --append adds rows to an existing store. Under torchrun the processes share the work.
    """
    from ddx.cli.console import emit, emit_json, emit_settings

    config = invocation.build(PrecomputeConfig)
    invocation.loading(f"the teacher {config.teacher}")
    if invocation.dry_run:
        from ddx.data.precompute.estimate import estimate

        emit_settings(estimate(config, sources, invocation.workspace), as_json=invocation.as_json)
        return 0
    from ddx.data.precompute import precompute
    from ddx.data.ranks import Rank

    store = precompute(config, sources, workspace=invocation.workspace, progress=invocation.progress)
    if not Rank.here().is_first:
        return 0
    if config.stage == "fetch":
        emit_json({"fetched": str(store)}) if invocation.as_json else emit(str(store))
    elif invocation.as_json:
        from ddx.data.store import Store

        summary = Store(store).summary()
        emit_json({"store": str(store), **{key: summary[key] for key in ("rows", "ok", "failed", "complete")}})
    else:
        emit(str(store))
    return 0
