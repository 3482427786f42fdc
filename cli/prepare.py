"""`ddx prepare`: prepare a teacher for sCM and SANA-Sprint."""

from __future__ import annotations

import os

import click

from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
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
    from ddx.cli.console import emit, emit_json, emit_settings, terminal_width
    from ddx.config import to_dict

    invocation.loading(f"the teacher {invocation.get('teacher', PrepareConfig.teacher)}")
    from ddx.cli.distill_memory import as_json, emit_memory
    from ddx.memory.plan import Planner, planned_device
    from ddx.training.estimate import in_words
    from ddx.training.prepare import as_distillation, plan_preparation, prepare
    from ddx.training.resolve import resolve_preparation

    config = resolve_preparation(invocation.layers)
    if invocation.dry_run:
        folder, store, seconds = plan_preparation(config, workspace=invocation.workspace)
        run, own = as_distillation(config, invocation.workspace)
        footprint = Planner(run, own, None, device=planned_device(run)).footprint()
        if invocation.as_json:
            cost = {"memory": as_json(footprint), "seconds": seconds}
            emit_json({"teacher": str(folder), "store": str(store), "config": to_dict(config), **cost})
            return 0
        emit_settings(to_dict(config), as_json=False)
        emit("")
        emit_memory(run, footprint, terminal_width())
        emit(f"reads     {store}")
        emit(f"writes    {folder}")
        emit(f"lasts     about {in_words(seconds)} on this machine")
        return 0
    folder = prepare(config, workspace=invocation.workspace, progress=invocation.progress, said=invocation.said)
    if os.environ.get("RANK", "0") != "0":  # one of several processes under torchrun
        return 0
    if invocation.as_json:
        emit_json({"teacher": str(folder), "config": to_dict(config)})
    else:
        emit(str(folder))
    return 0
