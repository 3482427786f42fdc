from __future__ import annotations

import json
import os
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import distill_runs as runs
from ddx.checkpoints.folder import latest_checkpoint
from ddx.cli import main
from ddx.errors import DdxError, UsageError
from ddx.progress import NullProgress
from ddx.watch.validation import Validation
from hears import Heard


@pytest.fixture(scope="module")
def undisturbed(teacher_folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.run(teacher_folder, store, tmp_path_factory.mktemp("undisturbed"), sample_every=4, sample_prompts=2)


class Stopper(NullProgress):
    """Sends this process a signal after some steps."""

    def __init__(self, after: int, number: int) -> None:
        self.left, self.number = after, number

    def advance(self, n: int = 1, **stats: float | int | str) -> None:
        self.left -= n
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def test_the_student_is_a_plain_pipeline_with_its_record(undisturbed: Path) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(undisturbed, use_safetensors=True)
    assert type(pipeline).__name__ == "SanaPipeline"
    record = json.loads((undisturbed / "run.json").read_text())
    assert record["finished"] and record["kind"] == "student" and record["method"] == "lcm"
    assert record["images_seen"] == 4 * runs.STEPS and record["guidance"] == 4.5 and record["guidance_range"] == [4, 6]
    assert record["config"]["learning_rate"] == 1e-3 and record["config"]["solver_steps"] == 50
    assert record["versions"]["torch"] and Path(record["store"]).is_dir()
    assert "README.md" in os.listdir(undisturbed)


def test_the_exported_weights_are_the_average_and_not_the_last(undisturbed: Path) -> None:
    from diffusers import SanaTransformer2DModel

    network = SanaTransformer2DModel.from_pretrained(undisturbed, subfolder="transformer")
    held, name = runs.tensors(undisturbed), "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(network.state_dict()[name], held[f"ema/{name}"])
    assert not torch.equal(held[f"ema/{name}"], held[f"student/{name}"])


def test_bf16_on_a_processor_takes_the_stores_float16(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    # CPU autocast refuses to join float16 to anything.
    student = runs.run(
        teacher_folder, store, tmp_path, dtype="bf16", export_dtype="bf16", train_steps=2, sample_every=2
    )
    assert [line["step"] for line in runs.lines(student) if "loss" in line] == [1, 2]


def test_metrics_and_grids_tell_how_it_went(undisturbed: Path) -> None:
    lines = [line for line in runs.lines(undisturbed) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, runs.STEPS + 1))
    assert {"images", "dropped", "grad_norm", "lr", "skipped", "seconds", "images_per_s", "peak_memory_bytes"} <= set(
        lines[0]
    )
    assert lines[0]["lr"] == pytest.approx(5e-4) and lines[1]["lr"] == pytest.approx(1e-3)
    distances = {line["step"]: line["ode_distance"] for line in runs.lines(undisturbed) if "ode_distance" in line}
    assert set(distances) == {0, 4, 8}
    assert sorted(path.name for path in (undisturbed / "grids").iterdir()) == [
        f"step-{step:06d}.png" for step in (0, 4, 8)
    ]


def test_a_grid_that_fails_is_a_warning_and_the_run_ends_as_if_it_had_none(
    teacher_folder: Path, store: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher fails at the first, the student in the midst of the second, and the disk at the last."""
    teacher_draws, student_draws, calls = Validation.teacher_draws, Validation.student_draws, count()

    def teacher_fails(self: Validation, num_steps: int) -> Any:
        if next(calls) == 0:
            (student / "grids" / "step-000008.png").mkdir(parents=True)
            raise torch.OutOfMemoryError("no room for a drawing of this size")
        return teacher_draws(self, num_steps)

    def student_fails(self: Validation, student: Any, num_steps: int) -> Any:
        drawn = student_draws(self, student, num_steps)
        if next(calls) == 2:
            raise torch.OutOfMemoryError("no room for a drawing of this size")
        return drawn

    monkeypatch.setattr(Validation, "teacher_draws", teacher_fails)
    monkeypatch.setattr(Validation, "student_draws", student_fails)
    student, heard = tmp_path / "student", Heard()
    settings: dict[str, Any] = {"out": student, "sample_every": 4, "sample_prompts": 2, "watch": False}
    runs.run(teacher_folder, store, tmp_path, progress=heard, **settings)
    _compare_without_grids(student, undisturbed)
    warnings = [said for said in heard.said if said.startswith("warning: the grid at step")]
    assert [said.split(": ")[2] for said in warnings] == ["OutOfMemoryError", "OutOfMemoryError", "IsADirectoryError"]
    assert not any("ode_distance" in line for line in runs.lines(student))


def test_old_checkpoints_are_deleted(undisturbed: Path) -> None:
    assert sorted(os.listdir(undisturbed / "checkpoints")) == ["step-000006", "step-000008"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_the_same_call_ends_as_if_never_stopped(
    number: int, teacher_folder: Path, store: Path, tmp_path: Path, undisturbed: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.run(teacher_folder, store, tmp_path, progress=Stopper(5, number))
    student = next((tmp_path / "students").iterdir())
    latest = latest_checkpoint(student / "checkpoints")
    assert latest is not None and latest.name == "step-000005"
    assert not json.loads((student / "run.json").read_text())["finished"]
    with pytest.raises(UsageError, match=r"learning_rate = 0\.001") as error:
        runs.run(teacher_folder, store, tmp_path, learning_rate=2e-3)
    assert "--out" in str(error.value.hint)
    assert runs.run(teacher_folder, store, tmp_path) == student
    _compare_without_grids(student, undisturbed)
    # finished: the next call begins another student
    with pytest.raises(KeyboardInterrupt):
        runs.run(teacher_folder, store, tmp_path, progress=Stopper(1, number))
    assert sorted(path.name for path in (tmp_path / "students").iterdir()) == ["tiny-lcm", "tiny-lcm-2"]


def test_a_store_that_has_other_rows_since_is_refused(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    with pytest.raises(KeyboardInterrupt):
        runs.run(teacher_folder, copy, tmp_path, progress=Stopper(5, signal.SIGINT))
    record = copy / "_ddx" / "commit" / "0"
    changed = json.loads(record.read_text())
    record.write_text(json.dumps({**changed, "ok": changed["ok"] + 1}))
    with pytest.raises(DdxError, match="usable pictures, and had") as error:
        runs.run(teacher_folder, copy, tmp_path)
    assert "--out" in str(error.value.hint)


def _compare_without_grids(student: Path, undisturbed: Path) -> None:
    ours, theirs = runs.tensors(student), runs.tensors(undisturbed)
    assert [name for name in theirs if not theirs[name].equal(ours[name])] == []
    losses = [[line["loss"] for line in runs.lines(path) if "loss" in line] for path in (student, undisturbed)]
    assert losses[0] == losses[1]


def test_a_finished_folder_that_is_named_is_left_alone(teacher_folder: Path, store: Path, undisturbed: Path) -> None:
    before = (undisturbed / "run.json").read_bytes()
    workspace = undisturbed.parent.parent
    settings = {"sample_every": 4, "sample_prompts": 2, "out": str(undisturbed)}
    assert runs.run(teacher_folder, store, workspace, **settings) == undisturbed
    assert (undisturbed / "run.json").read_bytes() == before


def test_interruption_on_the_command_line_exits_with_130(
    teacher_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddx.cli.invocation import Invocation

    monkeypatch.setattr(Invocation, "progress", property(lambda self: Stopper(2, signal.SIGINT)))
    assert main.run(runs.flags(teacher_folder, store, tmp_path)) == 130


def test_dry_run_prints_settings_and_cost_and_writes_nothing(
    teacher_folder: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*runs.flags(teacher_folder, store, tmp_path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in printed.splitlines() if len(line.split()) > 2}
    assert rows["learning_rate"] == ["0.001", "yours: --set"] and "GiB at the peak" in printed
    assert rows["solver_steps"][0] == "50"
    assert main.run([*runs.flags(teacher_folder, store, tmp_path), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["batch_size"] == 4 and plan["memory"]["peak_bytes"] > 0 and plan["seconds"] > 0
    assert not (tmp_path / "students").exists()


def test_a_folder_with_something_else_in_it_is_refused(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not a student"):
        runs.run(teacher_folder, store, tmp_path, out=str(tmp_path / "mine"))
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_a_batch_larger_than_the_store_is_refused(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size") as error:
        runs.run(teacher_folder, store, tmp_path, batch_size=1000)
    assert error.value.hint is not None and "--batch-size" in error.value.hint
