"""`ddx sample --memory`, and the memory that its dry run tells of."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from ddx.cli.console import emit

if TYPE_CHECKING:
    from ddx.cli.invocation import Invocation
    from ddx.memory.draw_plan import DrawPlan
    from ddx.sampling.config import SampleConfig
    from ddx.sampling.run import SampleResult


def fitted(invocation: Invocation, config: SampleConfig) -> DrawPlan:
    """Return what waits on the host for the drawing to be within the memory that the user gave; say what it is."""
    from ddx.memory.amount import in_gb, parse_amount
    from ddx.memory.draw_plan import counter_of, fit
    from ddx.sampling.run import open_files

    assert config.memory is not None
    num_bytes = parse_amount(config.memory)
    invocation.loading("the networks' shapes")
    files = open_files(config, invocation.workspace, weights=False)
    guidance = files.guidance if config.guidance is None else config.guidance
    counter = counter_of(files, guided=config.teacher is not None and guidance != 1.0, config=config)
    plan = fit(counter, num_bytes, invocation.progress.log, fp8=config.quantize == "fp8")
    kept = ", ".join(f"{name} {part.how}" for name, part in plan.parts.items())
    invocation.progress.log(f"memory: {in_gb(plan.peak)} at the peak, in {plan.during}; {kept}")
    return plan


def emit_memory(plan: DrawPlan, width: int) -> None:
    """Print how a drawing is kept: the peak, then a line a component with what it takes and costs."""
    from ddx.memory.amount import in_gb

    first = f"memory    {in_gb(plan.peak)} at the peak, in {plan.during}; beside it the device's own context"
    emit(textwrap.fill(first, width, subsequent_indent=10 * " "))
    for name, part in plan.parts.items():
        line = f"          {name:15} {part.how:7} {in_gb(part.count.peak):>9}  {part.cost}"
        emit(textwrap.fill(line.rstrip(), width, subsequent_indent=45 * " "))
    if plan.fp8:
        emit("          The denoiser's weights are in 8 bits: the picture is another one than without.")
    elif plan.keeping.maps is not None:
        emit("          The picture is the same; a convolution in parts may round its last bit differently.")
    else:
        emit("          The picture is the same, bit for bit.")


def as_json(plan: DrawPlan) -> dict[str, Any]:
    """Return a plan for `--json`."""
    return {
        "peak_bytes": plan.peak,
        "during": plan.during,
        "quantize": "fp8" if plan.fp8 else None,
        "parts": {
            name: {"how": part.how, "peak_bytes": part.count.peak, "maps_bytes": part.maps, "cost": part.cost}
            for name, part in plan.parts.items()
        },
    }


def reported(plan: DrawPlan, result: SampleResult) -> str:
    """Return what a drawing took, beside what was counted before."""
    from ddx.memory.amount import in_gb

    peak = result.peak_memory_bytes
    measured = "no GPU here, nothing to measure" if peak is None else f"{in_gb(peak)} measured"
    return f"{in_gb(plan.peak)} counted, {measured}; {result.seconds_per_picture:.1f} s a picture"
