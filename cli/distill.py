"""`ddx distill`: train a few-step student of a teacher from a store."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import click

from ddx.cli.displays import make_progress
from ddx.cli.invocation import Invocation, find_config
from ddx.cli.options import ExtendedCommand, config_options
from ddx.config import parse_sets, read_yaml
from ddx.errors import UsageError
from ddx.training.config import DistillConfig
from ddx.workspace import Workspace


class DistillCommand(ExtendedCommand):
    """`ddx distill` has the flags of every run, and those of the method on the command line."""

    def more_settings(self, arguments: list[str]) -> tuple[str, tuple[type[Any], ...]]:
        """Return the settings of the method; none for help without one, which then needs no torch."""
        from ddx.methods.registry import method_spec

        name, helps = _method(arguments), "--help" in arguments or "-h" in arguments
        if name is None:
            if helps:
                return "", ()
            name = DistillConfig.method
        if not helps:
            _say_loading(name, arguments)
        return f"Settings of {name}", method_spec(name).configs

    def unknown_flag(self, flag: str, arguments: list[str]) -> UsageError | None:
        """Say which methods have the setting, if others have it."""
        from ddx.training.resolve import of_another_method, owners_of

        owners = owners_of(flag.removeprefix("--").replace("-", "_"))
        return of_another_method(flag, owners, _method(arguments) or DistillConfig.method) if owners else None


def _say_loading(method: str, arguments: list[str]) -> None:
    """Say what takes the next seconds: a method's settings need torch, before the line is parsed."""
    if os.environ.get("RANK", "0") == "0":
        progress = make_progress(quiet="--quiet" in arguments, as_json="--json" in arguments)
        progress.log(f"loading the method {method} …")


def _method(arguments: list[str]) -> str | None:
    """Return the method that the line, its config file or the workspace names, None if nothing does."""
    layers = [Workspace(_last(arguments, "--workspace")).settings("distill")]
    if config := _last(arguments, "--config"):
        layers.append(read_yaml(find_config(config)))
    layers.append(parse_sets([pair for pair in _all(arguments, "--set") if "=" in pair]))
    if method := _last(arguments, "--method"):
        return method
    found = next((layer["method"] for layer in reversed(layers) if "method" in layer), None)
    return None if found is None else str(found)


def _all(arguments: list[str], flag: str) -> list[str]:
    """Return every value that follows `flag`, as `--flag value` or `--flag=value`."""
    found = [after for before, after in pairwise(arguments) if before == flag]
    return found + [word.partition("=")[2] for word in arguments if word.startswith(flag + "=")]


def _last(arguments: list[str], flag: str) -> str | None:
    found = _all(arguments, flag)
    return found[-1] if found else None


@click.command(
    cls=DistillCommand,
    epilog="""\b
Each method has more settings: ddx distill --method lcm --help
\b
Example:
  ddx distill --method lcm --teacher sana-tiny --train-steps 200
""",
)
@config_options(DistillConfig)
def command(invocation: Invocation) -> int:
    """Train a few-step student of a teacher from a store.

    The student is a plain diffusers pipeline. Run the same command again to continue an unfinished run. Run it under
    torchrun to use several devices.
    """
    from ddx.cli.console import emit, emit_json
    from ddx.training.resolve import resolve_recipe

    recipe = resolve_recipe(invocation.layers, invocation.workspace)
    footprint = None
    if recipe.config.memory is not None:
        from ddx.cli.distill_memory import fitted

        recipe, footprint = fitted(invocation, recipe)
    if invocation.dry_run:
        from ddx.cli.distill_plan import print_plan

        print_plan(invocation, recipe, footprint)
        return 0
    invocation.loading(f"the teacher {recipe.config.teacher}")
    from ddx.training.distill import distill

    folder = distill(
        recipe.config,
        recipe.method_config,
        recipe.discriminator,
        workspace=invocation.workspace,
        progress=invocation.progress,
        said=invocation.said,
    )
    if os.environ.get("RANK", "0") != "0":  # one of several processes under torchrun
        return 0
    if invocation.as_json:
        from ddx.run_record import read_run

        record = read_run(folder) or {}
        emit_json({"student": str(folder), **{key: record.get(key) for key in REPORTED}})
    else:
        emit(str(folder))
    return 0


REPORTED = ("teacher", "method", "store", "guidance", "images_seen", "seconds", "skipped_steps", "peak_memory_bytes")
