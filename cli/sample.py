"""`ddx sample`: draw pictures with a student or a teacher."""

from __future__ import annotations

import click

from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.sampling.config import SampleConfig


@click.command(
    epilog="""\b
Example:
  ddx sample --steps 1
  ddx sample --steps 4 --prompt "a small red circle above a large blue square" --num-images 4
  ddx sample --teacher sana-600m --memory 400MB --dry-run
"""
)
@config_options(SampleConfig)
def command(invocation: Invocation) -> int:
    """Draw pictures with a student, or with a teacher.

    By default the newest student of the workspace draws the standard prompts of its teacher. Each picture is a PNG
    file; grid.png and index.html show them together.

    A student that was trained in buckets draws in their sizes in turns, the square first; --size or --resolution gives
    all pictures one size.

    A picture equals the one that the code on the student's model card draws with diffusers alone, bit for bit. With
    --batch-size, or with the kernels of a GPU (DDX_KERNELS=torch turns them off), the two are equal up to rounding.

    --memory draws in little device memory: it counts what each component takes, on tensors without data, and chooses
    what waits on the host. docs/memory.md has the choices. With --dry-run it shows them, without weights or a GPU.
    """
    from ddx.cli.console import emit, emit_json, emit_settings, terminal_width
    from ddx.sampling.run import choose_student, plan, sample
    from ddx.sampling.teacher_folder import STEPS

    counted = STEPS if invocation.get("teacher") and invocation.get("steps") is None else None
    config = invocation.build(SampleConfig, steps=counted)
    planned = plan(config, invocation.workspace) if invocation.dry_run else {}
    drawing = None
    if config.memory is not None:
        from ddx.cli.sample_memory import as_json, emit_memory, fitted, reported

        drawing = fitted(invocation, config)
    if invocation.dry_run:
        if invocation.as_json and drawing is not None:
            planned["memory"] = as_json(drawing)
        emit_settings(planned, as_json=invocation.as_json)
        if drawing is not None and not invocation.as_json:
            emit("")
            emit_memory(drawing, terminal_width())
        return 0
    if config.teacher is None:
        invocation.loading(f"the student {choose_student(config.student, invocation.workspace)}")
    else:
        invocation.loading(f"the teacher {config.teacher}")
    keeping = None if drawing is None else drawing.keeping
    result = sample(config, invocation.workspace, invocation.progress, keeping=keeping)
    if invocation.as_json:
        emit_json({**result.to_dict(), **({} if drawing is None else {"memory": as_json(drawing)})})
    else:
        for picture in result.pictures:
            emit(str(picture.path))
        emit(f"grid  {result.grid}")
        emit(f"page  {result.page}")
        if drawing is not None:
            emit(f"memory  {reported(drawing, result)}")
    return 0
