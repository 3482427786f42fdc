"""`ddx precompute --memory`, and the memory that its dry run tells of."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from typing import TYPE_CHECKING, Any

from ddx.cli.console import emit
from ddx.progress import NullProgress

if TYPE_CHECKING:
    from ddx.cli.invocation import Invocation
    from ddx.data.config import PrecomputeConfig
    from ddx.memory.encode_plan import EncodePlan


def fitted(invocation: Invocation, config: PrecomputeConfig) -> tuple[PrecomputeConfig, EncodePlan]:
    """Return the settings and the plan with which the run is within the memory that the user gave; say what it is."""
    from ddx.memory.amount import in_gb, parse_amount
    from ddx.memory.encode_plan import counter_of, fit

    assert config.memory is not None
    num_bytes = parse_amount(config.memory)
    invocation.loading("the networks' shapes")
    progress = invocation.progress if os.environ.get("RANK", "0") == "0" else NullProgress()
    plan = fit(counter_of(config), num_bytes, config.batch_size, invocation.said, progress.log)
    kept = ", ".join(f"{name} {how}" for stage in (plan.texts, plan.pictures) for name, how in stage.parts.items())
    progress.log(
        f"memory: {in_gb(plan.peak)} at the peak, in {plan.during}; {kept}; batch_size {plan.pictures.at_once}"
    )
    return dataclasses.replace(config, batch_size=plan.pictures.at_once), plan


def counted(invocation: Invocation, config: PrecomputeConfig) -> EncodePlan:
    """Return what a run takes that keeps everything on the device."""
    from ddx.memory.encode_plan import counter_of, whole

    invocation.loading("the networks' shapes")
    return whole(counter_of(config), config.batch_size)


def emit_memory(plan: EncodePlan, width: int) -> None:
    """Print what a precompute takes of a GPU: the peak, then a line for captions and one for pictures."""
    from ddx.memory.amount import in_gb

    first = f"memory    {in_gb(plan.peak)} at the peak, in {plan.during}; beside it the device's own context"
    emit(textwrap.fill(first, width, subsequent_indent=10 * " "))
    for stage, what in ((plan.texts, "captions"), (plan.pictures, "pictures")):
        kept = ", ".join(f"{name} {how}" for name, how in stage.parts.items())
        line = f"          {f'{stage.at_once} {what}':13} {in_gb(stage.peak):>9}  {kept}"
        emit(textwrap.fill(f"{line}: {stage.cost}" if stage.cost else line, width, subsequent_indent=35 * " "))


def as_json(plan: EncodePlan) -> dict[str, Any]:
    """Return a plan for `--json`."""
    return {
        "peak_bytes": plan.peak,
        "during": plan.during,
        "captions": _stage(plan.texts),
        "pictures": _stage(plan.pictures),
    }


def _stage(stage: Any) -> dict[str, Any]:
    return {
        "peak_bytes": stage.peak,
        "at_once": stage.at_once,
        "parts": stage.parts,
        "maps_bytes": stage.maps,
        "cost": stage.cost,
    }
