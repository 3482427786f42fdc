"""`ddx scenes`: write the bundled captioned data set."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.scenes.config import ScenesConfig


@click.command(epilog="\b\nExample:\n  ddx scenes scenes.parquet --rows 2048")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@config_options(ScenesConfig)
def command(invocation: Invocation, out: Path) -> None:
    """Write the bundled captioned data set to a parquet file."""
    config = invocation.build(ScenesConfig)
    if not invocation.dry_run:
        from ddx.scenes.dataset import write_parquet

        write_parquet(out, config.rows, config.seed, config.split, progress=invocation.progress)  # type: ignore[arg-type]
    if invocation.as_json:
        click.echo(json.dumps({"path": str(out), "rows": config.rows, "seed": config.seed, "split": config.split}))
    else:
        click.echo(f"{config.rows} {config.split} scenes (seed {config.seed}) -> {out}", err=invocation.dry_run)
