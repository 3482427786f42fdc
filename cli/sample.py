"""`ddx sample`: draw pictures with a student."""

from __future__ import annotations

import click

from ddx.cli.options import Invocation, config_options
from ddx.sampling.config import SampleConfig


@click.command(
    epilog="""\b
Example:
  ddx sample --steps 1
  ddx sample --steps 4 --prompt "a small red circle above a large blue square" --num-images 4
"""
)
@config_options(SampleConfig)
def command(invocation: Invocation) -> int:
    """Draw pictures with a student.

    By default the newest student of the workspace draws the standard prompts of its teacher. Each picture is a PNG
    file; grid.png and index.html show them together.

    A student that was trained in buckets draws in their sizes in turns, the square first; --size or --resolution gives
    all pictures one size.

    A picture equals the one that the code on the student's model card draws with diffusers alone, bit for bit. With
    --batch-size, or with the kernels of a GPU (DDX_KERNELS=torch turns them off), the two are equal up to rounding.
    """
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.sampling.run import choose_student, plan, sample

    config = invocation.build(SampleConfig)
    if invocation.dry_run:
        emit_settings(plan(config, invocation.workspace), as_json=invocation.as_json)
        return 0
    invocation.loading(f"the student {choose_student(config.student, invocation.workspace)}")
    result = sample(config, invocation.workspace, invocation.progress)
    if invocation.as_json:
        emit_json(result.to_dict())
    else:
        for picture in result.pictures:
            emit(str(picture.path))
        emit(f"grid  {result.grid}")
        emit(f"page  {result.page}")
    return 0
