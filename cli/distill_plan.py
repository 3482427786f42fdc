"""`ddx distill --dry-run`: the recipe beside its source, and what the run would read, write and cost."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from ddx.cli.console import emit, emit_json, emit_origins, terminal_width
from ddx.cli.distill_memory import as_json, emit_memory, planner_of
from ddx.teachers.family_of import name_of, weights_are_here
from ddx.teachers.registry import TEACHERS

if TYPE_CHECKING:
    from ddx.cli.invocation import Invocation
    from ddx.memory.fake_run import Footprint
    from ddx.training.recipe import Recipe

LABELS = {"compile": "compile", "cuda_graphs": "graphs", "shard": "shard"}
GROUPS = ("published:", "yours:", "ddx:")  # the defaults come last


def print_plan(invocation: Invocation, recipe: Recipe, footprint: Footprint | None = None) -> None:
    """Print the recipe and the plan; without the teacher's weights the recipe and the memory: nothing is downloaded.

    footprint: the memory, where it was counted before.
    """
    from ddx.training.estimate import in_words

    teacher = recipe.config.teacher
    here = weights_are_here(teacher)
    if not invocation.as_json:
        _print_recipe(recipe)
    if here:
        invocation.loading(f"the teacher {teacher}")
    costs = _costs(invocation, recipe) if here else {}
    if footprint is None and (here or name_of(teacher) in TEACHERS):
        invocation.loading("the networks' shapes, to count a step's memory")
        footprint = planner_of(recipe).footprint()
    if invocation.as_json:
        emit_json(
            {
                "config": recipe.settings,
                "from": recipe.origins,
                "works": recipe.preset.cited,
                **(costs or dict.fromkeys(("store", "student", "resumes", "seconds", "on"))),
                "num_parameters": None if footprint is None else footprint.num_parameters,
                "memory": None if footprint is None else as_json(footprint),
            }
        )
        return
    emit("")
    if footprint is not None:
        emit_memory(recipe.config, footprint, terminal_width())
    if not costs:
        emit(f"The weights of {teacher} are not here: no store, folder or time is known yet.")
        return
    emit(f"reads     {costs['store']}")
    emit(f"writes    {costs['student']}{' (unfinished: goes on with it)' if costs['resumes'] else ''}")
    for name, state in costs["on"].items():
        emit(textwrap.fill(f"{LABELS[name]:<9} {state}", terminal_width(), subsequent_indent=" " * 10))
    emit(f"lasts     about {in_words(costs['seconds'])} on this machine")


def _print_recipe(recipe: Recipe) -> None:
    settings, origins, preset = recipe.settings, recipe.origins, recipe.preset
    emit(f"recipe    {_name(recipe)}")
    for number, work in enumerate(preset.cited, start=1):
        emit(f"source    [{number}] {work}")
    width = terminal_width()
    for trait, departure in preset.traits.items():
        text = f"differs   {trait}: {departure.ours}, published: {departure.published} ({departure.reason})"
        emit(textwrap.fill(text, width, subsequent_indent=" " * 10))
    emit("")
    order = sorted(settings, key=lambda name: (_group(origins[name]), list(settings).index(name)))
    emit_origins({name: settings[name] for name in order}, origins, width=width)


def _name(recipe: Recipe) -> str:
    """Return the preset and what it is; without one, what the method's recipes were published for."""
    from ddx.training.presets import published_for

    preset = recipe.preset
    if preset.name is not None:
        return f"{preset.name}: {preset.title}" if preset.title else preset.name
    return f"none: the method's defaults; published for {', '.join(published_for(recipe.config.method)) or 'no family'}"


def _group(origin: str) -> int:
    """Return where a setting is listed: published values first, plain defaults last."""
    place = next(number for number, mark in enumerate(GROUPS) if origin.startswith(mark))
    return place + origin.startswith("ddx: default") + (origin == "ddx: default")


def _costs(invocation: Invocation, recipe: Recipe) -> dict[str, Any]:
    from ddx.training.distill import plan

    found = plan(
        recipe.config,
        recipe.method_config,
        recipe.discriminator,
        workspace=invocation.workspace,
        said=invocation.said,
    )
    return {
        "store": str(found.store),
        "student": str(found.folder.path),
        "resumes": found.folder.resumed and not found.folder.finished,
        "seconds": found.seconds,
        "on": dict(found.on),
    }
