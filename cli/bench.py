"""`ddx bench`: measurements of the kernels on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddx.bench.config import KernelsConfig, StepConfig
from ddx.cli.groups import HelpfulGroup
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options

if TYPE_CHECKING:
    from ddx.workspace import Workspace


@click.group(
    cls=HelpfulGroup,
    epilog="""\b
Example:
  ddx bench kernels
  ddx bench kernels --ahead 90
  ddx bench step --method scm
""",
)
def command() -> None:
    """Check and time the kernels on this machine."""


@command.command(
    "kernels",
    epilog="""\b
Examples:
  ddx bench kernels
  ddx bench kernels --operation rms_norm --no-compile --json
  ddx bench kernels --ahead 90
  ddx bench kernels --tune
""",
)
@config_options(KernelsConfig, dry_run=False)
def kernels(invocation: Invocation) -> int:
    """Check each kernel against float64, then time it beside stock torch and torch.compile.

    The command first measures the copy rate and the matrix rate of the GPU. Each case is one line with the share of
    that roofline, the ratios to the peers, and the goals. A case with a wrong result is not timed, and the exit code is
    1. Without a GPU the command times the torch path at a tiny size.
    """
    config = invocation.build(KernelsConfig)
    if config.ahead:
        return _ahead(invocation, config)
    if config.tune:
        return _tune(invocation, config)
    return _measure(invocation, config)


def _measure(invocation: Invocation, config: KernelsConfig) -> int:
    invocation.loading("torch and the kernels")
    from ddx.bench.kernels import run
    from ddx.cli.bench_table import print_result
    from ddx.cli.console import emit_json
    from ddx.run_record import write_json

    path: list[Path] = []

    def save(result: dict[str, Any]) -> None:
        if not path:
            path.append(config.out or _result_path(invocation.workspace, result["environment"]["name"]))
        write_json(path[0], result)

    result = run(config, invocation.progress, save)
    if invocation.as_json:
        emit_json({**result, "file": str(path[0])})
    else:
        print_result(result, path[0])
    return 0 if all(row["gate"]["passed"] for row in result["rows"]) else 1


@command.command(
    "step",
    epilog="""\b
Examples:
  ddx bench step
  ddx bench step --method lcm --resolution 512 --json
""",
)
@config_options(StepConfig, dry_run=False)
def step(invocation: Invocation) -> int:
    """Time whole training steps: stock diffusers, torch.compile of it, ours, and ours as a CUDA graph.

    The steps are those of LCM, SiD with guidance and sCM, on SANA-600M with random weights. Each line has seconds per
    step, peak memory and, for ours, the speed-up over the others. The file also has the share of each kind of GPU
    kernel. Without a GPU the command runs a tiny model on the torch path.
    """
    config = invocation.build(StepConfig)
    invocation.loading("torch, diffusers and the kernels")
    from ddx.bench.step import run
    from ddx.cli.console import emit, emit_json, emit_table
    from ddx.run_record import write_json

    path: list[Path] = []

    def save(result: dict[str, Any]) -> None:
        if not path:
            path.append(config.out or _result_path(invocation.workspace, "step-" + result["environment"]["name"]))
        write_json(path[0], result)

    result = run(config, invocation.progress, save)
    if invocation.as_json:
        emit_json({**result, "file": str(path[0])})
    else:
        for note in result["notes"]:
            emit(f"note      {note}")
        emit_table(
            ["step", "size", "variant", "s a step", "GiB", "× eager", "× compile", ""],
            [_step_line(row) for row in result["rows"]],
        )
        emit(f"\n{path[0]}")
    return 0 if all("failure" not in row for row in result["rows"]) else 1


def _step_line(row: dict[str, Any]) -> list[Any]:
    memory = f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–"
    seconds = f"{row['seconds']:.4g}" if "seconds" in row else "–"
    ratios = [row.get(f"times {other}", "–") for other in ("eager", "compile")]
    return [row["step"], row["size"], row["variant"], seconds, memory, *ratios, row.get("failure", "")]


def _ahead(invocation: Invocation, config: KernelsConfig) -> int:
    invocation.loading("torch and the kernels")
    from ddx.bench.ahead import compile_table
    from ddx.cli.console import emit_json, emit_table
    from ddx.run_record import write_json

    rows = compile_table(int(config.ahead or 0), config.operation)
    if config.out:
        write_json(config.out, rows)
    if invocation.as_json:
        emit_json(rows)
    elif rows:
        emit_table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])
    return 0 if all(row["local_bytes"] == 0 for row in rows) else 1


def _tune(invocation: Invocation, config: KernelsConfig) -> int:
    invocation.loading("torch and the kernels")
    import torch

    from ddx.cli.console import emit, emit_json, emit_table
    from ddx.errors import DdxError

    if not torch.cuda.is_available():
        raise DdxError(
            "--tune needs a CUDA device, and there is none", hint="--ahead 90 compiles the kernels without one"
        )
    from ddx.bench.kernels import ON_A_GPU
    from ddx.bench.operations import chosen_cases
    from ddx.bench.tuning import in_words, tune, writable_table, write_table
    from ddx.device import find_device
    from ddx.kernels.launch import TABLE

    path, device = config.out or TABLE, find_device("auto")
    name = torch.cuda.get_device_name(device)
    writable_table(path)  # a folder that cannot be written is told before the work
    cases = [case for size in ON_A_GPU for case in chosen_cases(size, config.operation)]
    trials = tune(cases, device, torch.bfloat16, invocation.progress)
    write_table(path, name, {trial.kernel: trial.options for trial in trials if trial.chosen})
    shown = [[t.kernel, in_words(t.options), t.us, "chosen" if t.chosen else t.failure] for t in trials]
    if invocation.as_json:
        keys = ("kernel", "options", "us", "outcome")
        emit_json({"gpu": name, "file": str(path), "trials": [dict(zip(keys, row, strict=True)) for row in shown]})
    else:
        emit_table(["kernel", "options", "µs, all sizes", ""], shown)
        emit(f"\n{name} in {path}")
    return 0


def _result_path(workspace: Workspace, device: str) -> Path:
    from ddx.workspace import slug

    return workspace.report_path("kernels") / f"{slug(device)}.json"
