"""`ddx train`: a teacher from a recipe."""

from __future__ import annotations

import json

import click

from ddx.cli.options import Invocation, config_options
from ddx.config import to_dict
from ddx.training.teacher.config import TeacherConfig


@click.command(epilog="\b\nExample:\n  ddx train --config sana-tiny --out runs/teachers/sana-tiny --dry-run")
@config_options(TeacherConfig)
def command(invocation: Invocation) -> None:
    """Train a teacher from a recipe.

    The same command resumes a stopped run. The folder it writes is a diffusers SanaPipeline, and a --teacher.
    """
    config = invocation.build(TeacherConfig)
    out = config.out or invocation.workspace.root / "teachers" / "sana-tiny"
    images = config.flow_steps * config.flow_batch_size
    answer = {"teacher": str(out), "images": images, "config": to_dict(config)}
    if not invocation.dry_run:
        from ddx.run_record import read_run
        from ddx.training.teacher.train import train_teacher

        train_teacher(config, out, progress=invocation.progress)
        answer["scores"] = (read_run(out) or {}).get("scores", [])
    if invocation.as_json:
        click.echo(json.dumps(answer))
    elif invocation.dry_run:
        click.echo(f"would train {out} on {images} pictures", err=True)
        for key, value in to_dict(config).items():
            click.echo(f"  {key}: {value}", err=True)
    else:
        click.echo(str(out))
