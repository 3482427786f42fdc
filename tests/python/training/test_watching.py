"""A watched run: the same weights as without, a page, the best one kept; and what ends it or does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import distill_runs as runs
from ddx.cli import main
from ddx.errors import UsageError
from ddx.sampling.pipeline import StudentPipeline
from ddx.training.config import DistillConfig
from hears import Heard
from watchdog import WATCHDOG_S

WATCH = {"watch_every": 2, "watch_cost": 1e9, "watch_prompts": 2, "watch_seeds": 2, "reference_steps": 2}


def looks(student: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (student / "watch.jsonl").read_text().splitlines()]


def record(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return value


def test_a_watched_run_is_bit_for_bit_the_unwatched_one_and_keeps_its_best(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    heard = Heard()
    kept = {**WATCH, "keep_best": "ode_distance"}
    student = runs.run(teacher_folder, store, tmp_path / "with", progress=heard, **kept)
    plain = runs.run(teacher_folder, store, tmp_path / "without", watch=False)
    runs.assert_same_run(student, plain)
    assert not (plain / "watch.jsonl").exists() and not (plain / "index.html").exists()

    seen = looks(student)
    assert [look["step"] for look in seen] == [0, 2, 4, 6, 8]
    assert set(seen[1]["student"]) == {"1", "4"} and seen[1]["signals"]["loss"] > 0.0
    assert sum(said.startswith("look at step") for said in heard.said) == 5
    assert (student / "index.html").is_file() and len(list((student / "watch").glob("*.jpg"))) == 6
    assert len(list((tmp_path / "with" / "cache" / "watch").glob("*.npz"))) == 1

    best = record(student)["best"]
    values = {look["step"]: look["ode_distance"] for look in seen[1:]}
    step = min(values, key=values.__getitem__)
    assert best == {"step": step, "metric": "ode_distance", "value": values[step]}
    assert record(student / "best")["images_seen"] == 4 * best["step"]
    assert f"step {best['step']}" in (student / "README.md").read_text()
    drawn = StudentPipeline(student / "best", device="cpu").draw(["a dog"], [0], steps=1)
    assert len(drawn) == 1


def test_the_pictures_of_a_teacher_that_was_fine_tuned_in_place_are_drawn_again(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    first = looks(runs.run(teacher, store, tmp_path, out=tmp_path / "first", train_steps=2, **WATCH))
    (weights,) = (teacher / "transformer").glob("*.safetensors")
    save_file({name: 0.9 * tensor for name, tensor in load_file(weights).items()}, weights)
    second = looks(runs.run(teacher, store, tmp_path, out=tmp_path / "second", train_steps=2, **WATCH))
    assert len(list((tmp_path / "cache" / "watch").glob("*.npz"))) == 2
    assert first[0]["teacher"] != second[0]["teacher"]


# Dies at the look of step 6, with its pictures drawn and perhaps kept as the best, and its line torn.
CODE = """
import os, signal, sys
opened = []

def die(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/watch.jsonl") and arguments[1] == "a":
        opened.append(arguments)
        if len(opened) == 4:
            sys.stdout.flush()
            descriptor = os.open(arguments[0], os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, b'{{"step": 6, "ima')
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
from ddx.cli import main
main.run({flags!r})
"""


def test_killed_at_a_look_the_same_command_looks_on_and_ends_bit_for_bit_the_same(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    settings = {**WATCH, "keep_best": "ode_distance"}
    code = CODE.format(flags=runs.flags(teacher_folder, store, tmp_path / "killed", **settings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=WATCHDOG_S
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    student = tmp_path / "killed" / "students" / "tiny-lcm"
    assert (student / "watch.jsonl").read_text().endswith('{"step": 6, "ima')  # the checkpoint is of step 3

    assert runs.run(teacher_folder, store, tmp_path / "killed", **settings) == student
    undisturbed = runs.run(teacher_folder, store, tmp_path / "undisturbed", **settings)
    runs.assert_same_run(student, undisturbed)
    ours, theirs = ([(look["step"], look["student"]) for look in looks(s)] for s in (student, undisturbed))
    assert ours == theirs and [step for step, _ in ours] == [0, 2, 4, 6, 8]
    assert record(student)["best"] == record(undisturbed)["best"]


class Blocking(Heard):
    """Puts a file where the looks write, before the first of them."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        assert self.out is not None
        (self.out / "watch").write_text("in the way")

    out: Path | None = None


def test_looks_that_fail_are_warnings_and_three_of_them_end_the_watching(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    heard = Blocking()
    heard.out = tmp_path / "out"
    student = runs.run(teacher_folder, store, tmp_path, out=str(heard.out), progress=heard, **WATCH)
    warnings = [said for said in heard.said if said.startswith("warning: the look at step")]
    assert len(warnings) == 3 and "training goes on" in warnings[0]
    assert any("3 looks in a row failed" in said for said in heard.said)
    assert record(student)["finished"] and (student / "model_index.json").is_file()


def test_patience_ends_a_run_that_stands_still_and_another_command_takes_it_up(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    still = {**WATCH, "learning_rate": 1e-30, "patience": 2, "keep_best": "distance"}
    heard = Heard()
    student = runs.run(teacher_folder, store, tmp_path, progress=heard, **still)
    found = record(student)
    assert found["finished"] and found["best"]["step"] == 2 and found["images_seen"] == 4 * 6
    assert found["stopped"] == "2 looks without a better distance than at step 2"
    assert any("the run ends by 2 looks without" in said for said in heard.said)
    assert (student / "checkpoints" / "step-000006").is_dir() and (student / "best" / "model_index.json").is_file()
    assert "2 looks without a better distance" in (student / "README.md").read_text()
    said = ("train_steps",)
    longer = {**still, "patience": 0, "train_steps": 10}
    again = runs.run(teacher_folder, store, tmp_path, out=str(student), said=said, **longer)
    assert [look["step"] for look in looks(again)] == [0, 2, 4, 6, 8, 10] and "stopped" not in record(again)


def test_stop_on_alarm_ends_a_run_that_blows_up_and_says_why(
    teacher_folder: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blown = {**WATCH, "learning_rate": 3.0, "warmup_steps": 4, "train_steps": 12, "ema_half_life": 0.0}
    line = runs.flags(teacher_folder, store, tmp_path, **blown, clip_norm=1e6, stop_on_alarm=True)
    line.remove("--quiet")
    assert main.run(line) == 0
    shown = capfd.readouterr().err
    (student,) = (tmp_path / "students").iterdir()
    found = record(student)
    assert found["stopped"].startswith("an alarm at step") and found["alarms"]
    assert "alarm: " in shown and "lower the learning rate" in shown
    assert found["images_seen"] < 4 * 12


def test_settings_that_do_not_fit_are_refused() -> None:
    for settings, words in (
        ({"watch_cost": 0.0}, "watch_cost"),
        ({"watch_every": 0}, "watch_every"),
        ({"watch_seeds": 1}, "watch_seeds"),
        ({"watch": False, "keep_best": "distance"}, "keep_best = distance needs looks"),
        ({"watch": False, "patience": 3}, "patience = 3 needs looks"),
        ({"watch": False, "stop_on_alarm": True}, "stop_on_alarm = True needs looks"),
        ({"patience": -1}, "patience"),
    ):
        with pytest.raises(UsageError, match=words):
            DistillConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_under_two_ranks_the_first_one_looks_and_both_end_together(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    still = {**WATCH, "learning_rate": 1e-30, "patience": 1, "keep_best": "distance", "micro_batch_size": 2}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["ddx.cli.main", *runs.flags(teacher_folder, store, tmp_path, **still)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done.stderr[-4000:]
    (student,) = (tmp_path / "students").iterdir()
    assert [look["step"] for look in looks(student)] == [0, 2, 4] and record(student)["finished"]
