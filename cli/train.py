"""`ddx train`: train a teacher from a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.training.teacher.config import TeacherConfig


@click.command(epilog="\b\nExample:\n  ddx train --config sana-tiny --out runs/teachers/sana-tiny --dry-run")
@config_options(TeacherConfig)
def command(invocation: Invocation) -> None:
    """Train a teacher from a recipe.

    The folder is a diffusers SanaPipeline. Use it as --teacher. Run the same command again to continue a stopped run.
    """
    from ddx.cli.console import emit, emit_json
    from ddx.config import to_dict

    config = invocation.build(TeacherConfig)
    out = config.out or invocation.workspace.teacher_path("sana-tiny")
    if invocation.dry_run:
        _dry_run(invocation, config, out)
        return
    invocation.loading("torch and diffusers")
    from ddx.run_record import read_run
    from ddx.training.teacher.train import train_teacher

    train_teacher(config, out, progress=invocation.progress)
    if invocation.as_json:
        scores = (read_run(out) or {}).get("scores", [])
        emit_json({"teacher": str(out), "config": to_dict(config), "scores": scores})
    else:
        emit(str(out))


def _dry_run(invocation: Invocation, config: TeacherConfig, out: Path) -> None:
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.config import to_dict

    invocation.loading("torch and diffusers")
    from ddx.training.teacher.estimate import estimate_training

    estimate = estimate_training(config)
    if invocation.as_json:
        cost = {"memory_bytes": estimate.memory_bytes, "seconds": estimate.seconds}
        emit_json({"teacher": str(out), "config": to_dict(config), **cost})
        return
    emit_settings(to_dict(config), as_json=False)
    emit("")
    emit(f"writes    {out}")
    emit(f"estimate  {estimate}")
