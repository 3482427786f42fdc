"""Chooses launch options by trying them on the GPU at hand, and keeps the choice in the table that launches read.

A kernel gets one set of options, by the sum of the times of all cases and sizes that launch it. Its default stays
unless another is faster by more than measurements differ, and only options that give right answers are chosen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddx.bench.calls import launches_asked, prepare
from ddx.bench.case import Case
from ddx.bench.gates import gate
from ddx.bench.timing import gpu_time, sets_of_inputs
from ddx.errors import DdxError
from ddx.kernels import launch
from ddx.kernels.launch import LAUNCHES, Launch, Options
from ddx.progress import NullProgress, Progress
from ddx.run_record import write_json

WORTH_IT = 0.02  # the share by which a candidate must beat the default


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of options of one kernel: the sum over its cases, or why there is none."""

    kernel: str
    options: Options
    us: float | None
    failure: str = ""
    chosen: bool = False


def tune(
    cases: Sequence[Case], device: torch.device, dtype: torch.dtype, progress: Progress | None = None
) -> list[Trial]:
    """Return every candidate of every kernel that the cases launch on `device`, with the chosen ones marked."""
    progress = progress or NullProgress()
    users: dict[str, list[Case]] = {}
    for case in cases:
        for name in launched_by(case, device, dtype):
            users.setdefault(name, []).append(case)
    progress.start("tuning", len(users), "kernel")
    trials: list[Trial] = []
    with ExitStack() as settled:
        for name, using in users.items():
            tried = _try_all(LAUNCHES[name], using, device, dtype)
            trials += tried
            for trial in tried:
                if trial.chosen:  # the kernels that are tried next run beside this one as it will be
                    settled.enter_context(LAUNCHES[name].force(trial.options))
                    progress.log(f"{name}: {in_words(trial.options)}, {trial.us:.1f} µs")
            progress.advance()
    progress.finish()
    return trials


def write_table(path: Path, device_name: str, chosen: Mapping[str, Options]) -> None:
    """Set the kernels of `device_name` in the table at `path` and keep everything else; whole or not at all.

    A file that does not exist begins as the package's own. Raises DdxError as :func:`writable_table` does.
    """
    table = writable_table(path)
    table[device_name] = {**table.get(device_name, {}), **{name: dict(options) for name, options in chosen.items()}}
    ordered = {device: dict(sorted(table[device].items())) for device in sorted(table)}
    write_json(path, ordered)
    launch.forget_table()


def writable_table(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the table at `path` holds, or the package's own where there is no file.

    Raises DdxError where its folder cannot be written or the file does not hold a table.
    """
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DdxError(f"{folder} cannot be made: {error.strerror}", hint="--out FILE elsewhere") from error
    if not os.access(folder, os.W_OK):
        raise DdxError(f"{folder} is not writable", hint="--out FILE writes the table elsewhere")
    return read_table(path if path.exists() else launch.TABLE)


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """Return the table at `path`, empty where there is no file. Raises DdxError when it is not a table."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DdxError(f"{path} is not JSON: {error}", hint="`git checkout` brings the table back") from error
    if not isinstance(table, dict) or not all(isinstance(kernels, dict) for kernels in table.values()):
        raise DdxError(f"{path} does not hold kernels by GPU", hint="`git checkout` brings the table back")
    return table


def launched_by(case: Case, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the names of the launches whose options one timed call of the case asks for; none when it cannot run."""
    try:
        with torch.no_grad(), launches_asked() as asked:
            prepare(case, case.ours, case.inputs(device, dtype), both_passes=True)()
    except Exception:  # what cannot run is reported by its gate, when it is measured
        return []
    return asked


def in_words(options: Options) -> str:
    """Return options as they are written in a table."""
    return " ".join(f"{key}={value}" for key, value in options.items())


def _try_all(kernel: Launch, cases: Sequence[Case], device: torch.device, dtype: torch.dtype) -> list[Trial]:
    options = list({in_words(entry): entry for entry in (kernel.default, *kernel.candidates)}.values())
    trials = [_try(kernel, entry, cases, device, dtype) for entry in options]
    chosen = _choose(trials, kernel, cases, device, dtype)
    return [
        Trial(kernel=trial.kernel, options=trial.options, us=trial.us, failure=trial.failure, chosen=trial is chosen)
        for trial in trials
    ]


def _try(kernel: Launch, options: Options, cases: Sequence[Case], device: torch.device, dtype: torch.dtype) -> Trial:
    total = 0.0
    with _forced(kernel, options):
        for case in cases:
            sets = sets_of_inputs(case, device, dtype, seed=0)
            measured = gpu_time(case, sets, device)
            if measured.us is None:
                return Trial(kernel=kernel.name, options=options, us=None, failure=measured.failure or "")
            total += measured.us
    return Trial(kernel=kernel.name, options=options, us=total)


def _choose(
    trials: Sequence[Trial], kernel: Launch, cases: Sequence[Case], device: torch.device, dtype: torch.dtype
) -> Trial | None:
    """Return the fastest trial with right answers; the default, which is the first, where it is as fast."""
    ran = sorted((trial for trial in trials if trial.us is not None), key=lambda trial: trial.us or 0.0)
    default = trials[0]
    if default.us is not None and ran[0].us is not None and ran[0].us > (1 - WORTH_IT) * default.us:
        ran = [default, *(trial for trial in ran if trial is not default)]
    for trial in ran:
        with _forced(kernel, trial.options):
            if all(gate(case, device, dtype, seed=number).passed for number, case in enumerate(cases)):
                return trial
    return None


@contextmanager
def _forced(kernel: Launch, options: Options) -> Iterator[None]:
    """Force options for a moment, also on a kernel that is forced already."""
    before = kernel.forced
    with kernel.force(options):
        yield
    kernel.forced = before
