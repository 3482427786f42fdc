"""`ddx merge`: several stores into one."""

from __future__ import annotations

from pathlib import Path

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.data.config import MergeConfig


@click.command(
    epilog="""\b
Example:
  ddx merge runs/data/a.zarr runs/data/b.zarr --out runs/data/both.zarr
"""
)
@click.argument(
    "stores", nargs=-1, metavar="STORE...", type=click.Path(path_type=Path), shell_complete=suggestions.stores
)
@config_options(MergeConfig)
def command(invocation: Invocation, stores: tuple[Path, ...]) -> None:
    """Join several stores into one, without encoding again.

    The stores must be complete, of the same teacher and of the same shapes. They do not change. On one file system the
    new store takes hardly any space. Run the same command again to continue after a stop.
    """
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.data.merge import merge
    from ddx.data.merge_plan import merged_attributes
    from ddx.data.store import Store

    config = invocation.build(MergeConfig)
    if invocation.dry_run:
        attributes = merged_attributes([Store(path) for path in stores], config.out)
        shown = {"out": config.out, **{name: attributes[name] for name in ("teacher", "rows", "num_parts")}}
        emit_settings(shown, as_json=invocation.as_json)
        return
    out = merge(stores, config.out, progress=invocation.progress)
    if invocation.as_json:
        summary = Store(out).summary()
        emit_json({"store": str(out), **{key: summary[key] for key in ("rows", "ok", "failed", "complete")}})
    else:
        emit(str(out))
