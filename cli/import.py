"""`ddx import`: a student of others as a folder of ours."""

from __future__ import annotations

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.importing.config import ImportConfig


@click.command(
    epilog="""\b
Example:
  ddx import sid-lsg.pkl --teacher sd15 --first-timestep 625 --max-steps 1
  ddx import latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors --teacher sdxl
  ddx import tianweiy/DMD2/dmd2_sdxl_1step_unet_fp16.bin --teacher sdxl --first-timestep 399 --max-steps 1
"""
)
@click.argument("source", metavar="FILE|ORG/NAME/FILE", shell_complete=suggestions.files)
@config_options(ImportConfig, dry_run=False)
def command(invocation: Invocation, source: str) -> None:
    """Make a student folder of weights that others published.

    The source is the weights of a denoiser, whole or as a LoRA: safetensors, a state dict of torch, or a pickled
    module. It is read as data; nothing in it is executed. The student draws, is scored and is exported like one of
    `ddx distill`.
    """
    from ddx.cli.console import emit, emit_json

    config = invocation.build(ImportConfig)
    invocation.loading(f"the teacher {config.teacher}")
    from ddx.importing.run import import_student

    folder = import_student(source, config, workspace=invocation.workspace, progress=invocation.progress)
    emit_json({"student": str(folder)}) if invocation.as_json else emit(str(folder))
