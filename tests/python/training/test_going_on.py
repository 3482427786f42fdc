"""Going on otherwise than before: longer, with another rate, after an interruption; and what may not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import distill_runs as runs
from ddx.cli import main
from ddx.data.ranks import claim
from ddx.errors import DdxError, Interrupted, UsageError
from ddx.progress import NullProgress
from ddx.training import saver
from ddx.training.interruption import StopSignal
from ddx.training.sole_writer import LOCK

SAID = ("train_steps", "learning_rate")


def record(student: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((student / "run.json").read_text())
    return value


@pytest.fixture(scope="module")
def five(teacher_folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.run(teacher_folder, store, tmp_path_factory.mktemp("five"), train_steps=5)


def test_a_finished_run_made_longer_is_the_longer_run_and_refuses_what_it_cannot(
    five: Path, teacher_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(said: tuple[str, ...] = SAID, **settings: Any) -> Path:
        return runs.run(teacher_folder, store, tmp_path, out=str(five), said=said, **settings)

    before = (five / "run.json").read_bytes()
    with pytest.raises(UsageError, match="train_steps = 5, not 8") as error:
        again(said=(), train_steps=8)  # a preset's or a default's
    assert error.value.hint and f"--out {five} --set train_steps=8" in error.value.hint
    with pytest.raises(UsageError, match="can be made longer, not shorter"):
        again(train_steps=4)
    with pytest.raises(UsageError, match="no step is left for learning_rate"):
        again(train_steps=5, learning_rate=1e-4)
    assert (five / "run.json").read_bytes() == before

    older = json.loads(before)
    del older["config"]["student_times"]  # as if it were begun before there was such a setting
    (five / "run.json").write_text(json.dumps(older))
    with pytest.raises(UsageError, match="student_times"):
        again(said=(*SAID, "student_times"), student_times=(1.0, 0.783))
    assert again() == five
    monkeypatch.setattr(saver, "AT_ONCE", -1)  # saved while it goes on, however small
    runs.assert_same_run(five, runs.run(teacher_folder, store, tmp_path / "undisturbed"))
    assert record(five)["history"] == [{"step": 5, "train_steps": [5, runs.STEPS]}]
    assert again() == five and len(record(five)["history"]) == 1  # finished


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"lr_schedule": "cosine"}, "its cosine learning rate falls to 0 at step 1, and would at 2"),
        ({"solver_steps_start": 10}, "solver_steps_start: shares of 1 steps"),
    ],
)
def test_what_is_spread_over_the_run_keeps_it_from_being_made_longer(
    settings: dict[str, Any], why: str, teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    student = runs.run(teacher_folder, store, tmp_path, train_steps=1, **settings)
    with pytest.raises(UsageError, match=why) as error:
        runs.run(teacher_folder, store, tmp_path, out=str(student), said=SAID, train_steps=2, **settings)
    assert error.value.hint and f"--from-student {student}" in error.value.hint


class Signals(NullProgress):
    """Sends this process signals, and hears what it says."""

    def __init__(self, after: int, times: int) -> None:
        self.left, self.times = after, times
        self.said: list[str] = []

    def advance(self, n: int = 1, **stats: float | int | str) -> None:
        self.left -= n
        if self.left == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)

    def log(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize(("times", "saved"), [(1, "step-000005"), (2, "step-000003")])
def test_an_interruption_is_acknowledged_and_says_what_is_saved_and_another_rate_goes_on(
    times: int, saved: str, teacher_folder: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard, out = Signals(5, times), tmp_path / "out"
    with pytest.raises(Interrupted) as error:
        runs.run(teacher_folder, store, tmp_path, out=str(out), progress=heard)
    assert heard.said[-1] == "stopping after this step; again to stop now"
    assert error.value.hint == f"the same command goes on from {out / 'checkpoints' / saved}"
    if times == 2:
        return
    line = runs.flags(teacher_folder, store, tmp_path, out=str(out), learning_rate=5e-4)
    assert main.run(line) == 0, capfd.readouterr().err
    assert record(out)["history"] == [{"step": 5, "learning_rate": [1e-3, 5e-4]}]
    rates = {line["step"]: line["lr"] for line in runs.lines(out)}
    assert (rates[5], rates[6]) == (1e-3, 5e-4)


def test_under_torchrun_a_request_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    said: list[str] = []
    with StopSignal(said.append) as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert stop.requested and len(said) == 1


def test_interrupted_before_a_checkpoint_nothing_is_promised(
    teacher_folder: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from ddx.cli.invocation import Invocation

    monkeypatch.setattr(Invocation, "progress", property(lambda self: Signals(1, 2)))
    assert main.run(runs.flags(teacher_folder, store, tmp_path)) == 130
    assert capfd.readouterr().err.endswith("hint: nothing is saved yet: the same command begins again\n")


def test_a_second_run_in_a_folder_is_turned_away(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claim(out, LOCK) as held, pytest.raises(DdxError, match="another process is writing") as error:
        assert held
        runs.run(teacher_folder, store, tmp_path, out=str(out), train_steps=1)
    assert error.value.exit_code == 1 and not (out / "run.json").exists()
    with claim(out, LOCK), pytest.raises(DdxError, match="another process is writing"):
        from ddx.training.teacher.config import TeacherConfig
        from ddx.training.teacher.train import train_teacher

        train_teacher(TeacherConfig(), out)
    assert runs.run(teacher_folder, store, tmp_path, out=str(out), train_steps=1) == out  # the lock alone is no student


NOT_WRITABLE = ["{file}/student", "/proc/student", "{folder}/" + "x" * 300]


@pytest.mark.parametrize(
    ("command", "place"),
    [
        *((command, place) for command in ("distill", "scenes", "sample") for place in NOT_WRITABLE),
        *((command, "{file}") for command in ("distill", "sample")),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    command: str,
    place: str,
    five: Path,
    teacher_folder: Path,
    store: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("precious")
    out = place.format(file=tmp_path / "file", folder=tmp_path)
    if command == "scenes":
        line = ["scenes", out, "--rows", "2", "--quiet"]
    elif command == "sample":
        line = ["sample", "--student", str(five), "--prompt", "a dog", "--out", out, "--quiet"]
    else:
        line = runs.flags(teacher_folder, store, tmp_path, out=out, train_steps=1)
    assert main.run(line) in (1, 2)
    *_, error, hint = capfd.readouterr().err.strip().splitlines()
    assert error.startswith("error: ") and out in error and hint.startswith("hint: ")
    assert (tmp_path / "file").read_text() == "precious"
