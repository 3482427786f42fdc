"""`ddx export`: write a student in the format of another program."""

from __future__ import annotations

from pathlib import Path

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.export.config import LOW_RANK, ExportConfig


@click.command(
    epilog="""\b
Examples:
  ddx export --format lora --rank 64
  ddx export runs/students/sdxl-dmd2 --format single-file --dtype fp16 --out dmd2.safetensors
"""
)
@click.argument(
    "student",
    required=False,
    metavar="[STUDENT]",
    type=click.Path(path_type=Path),
    shell_complete=suggestions.students,
)
@config_options(ExportConfig)
def command(invocation: Invocation, student: Path | None) -> int:
    """Write a student in the format of another program.

    \b
    diffusers    the pipeline's folder, without what the training left
    single-file  one checkpoint in the layout of the original; of a transformer, that alone
    lora         pytorch_lora_weights.safetensors, for diffusers and peft
    comfyui      the same for ComfyUI and A1111

    By default it is the newest student of the workspace. A student with whole weights becomes a LoRA by the best
    matrices of a rank for each layer; the command says which share of the difference to the teacher they keep.
    """
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.export.export import export, plan

    config = invocation.build(ExportConfig)
    planned = plan(student, config, invocation.workspace)
    if invocation.dry_run:
        emit_settings(planned, as_json=invocation.as_json)
        return 0
    invocation.loading(f"the student {planned['student']}")
    found = export(student, config, invocation.workspace, invocation.progress)
    if invocation.as_json:
        emit_json(found.to_dict())
        return 0
    emit(str(found.path))
    if config.format in LOW_RANK:
        facts = found.facts
        emit(f"rank {facts['rank']}, keeps {facts['kept']:.2%} of the energy of the difference to the teacher")
        if facts.get("outside"):
            emit(f"{facts['outside']:.2%} of it is in weights that a LoRA has no layer for")
    return 0
