"""`ddx precompute`: encode images and captions into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.data.config import PrecomputeConfig

if TYPE_CHECKING:
    from ddx.memory.encode_plan import EncodePlan


@click.command(
    epilog="""\b
Example:
  ddx precompute laion.parquet
  ddx precompute 'part-*.parquet' --teacher sana-tiny --batch-size 16
  ddx precompute '{00000..00099}.tar' --where "width >= 512" --limit 10000
  ddx precompute 's3://bucket/part-*.parquet' --max-aspect 2
  ddx precompute laion.parquet --memory 4GB --dry-run
  ddx precompute 'part-*.parquet' --engine ray --stage fetch
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
    With --engine ray the parts are tasks of a Ray cluster, whose machines share a file system.

    --memory encodes in little device memory: it counts what the encoders take, on tensors without data, and chooses the
    batch size and what waits on the host. With --dry-run it shows them, without weights or a GPU.
    """
    from ddx.cli.console import emit, emit_json

    config = invocation.build(PrecomputeConfig)
    plan = None
    if config.memory is not None:
        from ddx.cli.precompute_memory import fitted

        config, plan = fitted(invocation, config)
    if invocation.dry_run:
        _print_plan(invocation, config, sources, plan)
        return 0
    invocation.loading(f"the teacher {config.teacher}")
    from ddx.data.precompute import precompute
    from ddx.data.ranks import Rank

    keeping = None if plan is None else plan.keeping
    store = precompute(config, sources, workspace=invocation.workspace, progress=invocation.progress, keeping=keeping)
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


def _print_plan(
    invocation: Invocation, config: PrecomputeConfig, sources: tuple[str, ...], plan: EncodePlan | None
) -> None:
    """Print what a run would read, write and cost; without the teacher's weights the settings and the memory alone."""
    from ddx.cli.console import emit, emit_json, emit_settings, terminal_width
    from ddx.cli.precompute_memory import as_json, counted, emit_memory
    from ddx.config import to_dict
    from ddx.memory.encode_plan import counts_here
    from ddx.teachers.family_of import name_of, weights_are_here
    from ddx.teachers.registry import TEACHERS

    here = weights_are_here(config.teacher)
    if plan is None and (counts_here(config) if here else name_of(config.teacher) in TEACHERS):
        plan = counted(invocation, config)
    planned = to_dict(config)
    if here or plan is None:
        from ddx.data.precompute.estimate import estimate

        invocation.loading(f"the teacher {config.teacher}")
        planned = estimate(config, sources, invocation.workspace, None if plan is None else plan.keeping)
    if invocation.as_json:
        emit_json({**planned, "memory": None if plan is None else as_json(plan)})
        return
    emit_settings(planned, as_json=False)
    if plan is not None:
        emit("")
        emit_memory(plan, terminal_width())
    if not here:
        emit(f"The weights of {config.teacher} are not here: no rows, store or time is known yet.")
