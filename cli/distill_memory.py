"""`ddx distill --memory`, and the memory that a dry run tells of."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from typing import TYPE_CHECKING, Any

from ddx.cli.console import emit
from ddx.config import to_dict
from ddx.progress import NullProgress

if TYPE_CHECKING:
    from ddx.cli.invocation import Invocation
    from ddx.memory.fake_run import Footprint
    from ddx.memory.plan import Planner
    from ddx.training.config import DistillConfig
    from ddx.training.recipe import Recipe


def fitted(invocation: Invocation, recipe: Recipe) -> tuple[Recipe, Footprint]:
    """Return the recipe with what makes it fit the memory that the user gave, and its footprint; say what it is."""
    from ddx.memory.amount import in_gib, parse_amount

    assert recipe.config.memory is not None
    num_bytes = parse_amount(recipe.config.memory)
    invocation.loading("the networks' shapes")
    progress = invocation.progress if os.environ.get("RANK", "0") == "0" else NullProgress()
    fit = planner_of(recipe).fit(num_bytes, recipe.decided, progress.log)
    peak, settings = in_gib(fit.footprint.peak.num_bytes), to_dict(fit.config)
    chosen = "; ".join(f"{name} {_said(settings[name])} ({why})" for name, why in fit.reasons.items())
    progress.log(f"memory: {peak} at the peak, with {chosen or 'the recipe as it is'}")
    reasons = {name: f"--memory: {why}" for name, why in fit.reasons.items()}
    return dataclasses.replace(recipe, config=fit.config, chosen={**recipe.chosen, **reasons}), fit.footprint


def _said(value: Any) -> str:
    return " and ".join(value) if isinstance(value, (list, tuple)) else str(value)


def planner_of(recipe: Recipe) -> Planner:
    """Return what counts this run's steps on the device that it will have."""
    from ddx.memory.plan import Planner, planned_device

    return Planner(
        recipe.config,
        recipe.method_config,
        recipe.discriminator,
        device=planned_device(recipe.config),
        world=int(os.environ.get("WORLD_SIZE", "1")),
    )


def emit_memory(config: DistillConfig, footprint: Footprint, width: int) -> None:
    """Print what a dry run tells of a footprint, in lines of at most `width` characters."""
    from ddx.memory.amount import in_gib
    from ddx.memory.plan import ALLOWANCE, planned_device
    from ddx.memory.table import headline, lines, looks_line

    first = f"memory    {headline(footprint)}, for {footprint.num_parameters / 1e6:,.0f} M parameters"
    if planned_device(config).gpu:
        first += f"; beside it about {in_gib(ALLOWANCE)} for the device's own context and libraries"
    emit(textwrap.fill(first, width, subsequent_indent=10 * " "))
    looks = looks_line(footprint)
    for line in (*lines(footprint), *([] if looks is None else [looks])):
        emit(textwrap.fill(f"          {line}", width, subsequent_indent=32 * " "))


def as_json(footprint: Footprint) -> dict[str, Any]:
    """Return a footprint for `--json`."""
    from ddx.memory.table import by_owner

    return {
        "peak_bytes": footprint.peak.num_bytes,
        "during": list(footprint.peak.during),
        "by": by_owner(footprint),
        "host_bytes": footprint.host_bytes,
        "looks_bytes": None if footprint.looks is None else footprint.looks.num_bytes,
    }
