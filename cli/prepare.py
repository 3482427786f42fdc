"""`ddx prepare`: prepare a teacher for sCM and SANA-Sprint."""

from __future__ import annotations

import os

import click

from ddx.cli.options import Invocation, config_options
from ddx.training.prepare_config import PrepareConfig


@click.command(
    epilog="""\b
Example:
  ddx prepare --teacher sana-600m
  ddx distill --method sana-sprint --teacher runs/teachers/sana-600m-prepared
"""
)
@config_options(PrepareConfig)
def command(invocation: Invocation) -> int:
    """Tune a SANA teacher for continuous-time distillation.

    The command adds norms on queries and keys and a time embedding of t itself, and trains the new network to predict
    what the teacher predicts. The folder is a diffusers pipeline. Use it as --teacher; it reads the stores of the
    original teacher. Run the same command again to continue an unfinished run.
    """
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.config import to_dict

    invocation.loading(f"the teacher {invocation.get('teacher', PrepareConfig.teacher)}")
    from ddx.training.prepare import plan_preparation, prepare
    from ddx.training.resolve import resolve_preparation

    config = resolve_preparation(invocation.layers)
    if invocation.dry_run:
        folder, store, estimate = plan_preparation(config, workspace=invocation.workspace)
        if invocation.as_json:
            cost = {"memory_bytes": estimate.memory_bytes, "seconds": estimate.seconds}
            emit_json({"teacher": str(folder), "store": str(store), "config": to_dict(config), **cost})
            return 0
        emit_settings(to_dict(config), as_json=False)
        emit("")
        emit(f"reads     {store}")
        emit(f"writes    {folder}")
        emit(f"estimate  {estimate}")
        return 0
    folder = prepare(config, workspace=invocation.workspace, progress=invocation.progress, said=invocation.said)
    if os.environ.get("RANK", "0") != "0":  # one of several processes under torchrun
        return 0
    if invocation.as_json:
        emit_json({"teacher": str(folder), "config": to_dict(config)})
    else:
        emit(str(folder))
    return 0
