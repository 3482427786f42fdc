from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distill_runs as runs
from ddx.cli import main
from ddx.errors import UsageError
from ddx.run_record import write_run
from ddx.teachers.registry import load_teacher
from ddx.training.starting_weights import starting_weights
from ddx.workspace import Workspace
from pipelines import make_sana, make_stable_diffusion
from students import make_student


@pytest.fixture(scope="module")
def first(teacher_folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a method with a guidance embedder, which its export has folded in."""
    return runs.run(teacher_folder, store, tmp_path_factory.mktemp("first"), out=None)


def exported(student: Path) -> dict[str, torch.Tensor]:
    return load_file(student / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("method", ["lcm", "dmd2"])
def test_a_run_that_learns_nothing_ends_as_the_student_that_it_began_with(
    method: str, first: Path, teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    still = {"learning_rate": 1e-30, "train_steps": 1, "method": method}
    again = exported(runs.run(teacher_folder, store, tmp_path / "again", from_student=str(first), **still))
    plain = exported(runs.run(teacher_folder, store, tmp_path / "plain", **still))
    assert again.keys() == plain.keys()
    moved = [name for name, value in exported(first).items() if not torch.equal(value, plain[name])]
    assert len(moved) > 10  # it had learned something
    for name, value in exported(first).items():
        assert torch.equal(again[name], value), name


def test_other_networks_start_from_the_teacher(first: Path, teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    settings = {"method": "dmd2", "learning_rate": 1e-30, "train_steps": 1}
    student = runs.run(teacher_folder, store, tmp_path, from_student=str(first), **settings)
    held = runs.tensors(student, 1)
    teacher = exported(teacher_folder)
    for name, value in teacher.items():
        assert torch.equal(held[f"fake_score/{name}"], value), name
    assert any(not torch.equal(held[f"student/{name}"], value) for name, value in teacher.items())


@pytest.fixture(scope="module")
def stage(teacher_folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two steps, whose fake score knows the step, and a longer average of it."""
    settings = {"method": "dmd2", "num_steps": 2, "train_steps": 2, "ema_more": "half-life:20"}
    return runs.run(teacher_folder, store, tmp_path_factory.mktemp("stage"), out=None, **settings)


def fakes(student: Path, step: int) -> dict[str, torch.Tensor]:
    return {name: value for name, value in runs.tensors(student, step).items() if name.startswith("fake_score/")}


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_fake_score_goes_on(num_steps: int, stage: Path, teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    still = {"method": "dmd2", "num_steps": num_steps, "learning_rate": 1e-30, "train_steps": 1}
    folder = next((stage / "averages").iterdir()) if num_steps == 1 else stage
    student = runs.run(teacher_folder, store, tmp_path, from_student=str(folder), fake_from="last-stage", **still)
    before, after, teacher = fakes(stage, 2), fakes(student, 1), exported(teacher_folder)
    knows_the_step = [name for name in before if "embedder" in name and name.removeprefix("fake_score/") not in teacher]
    assert knows_the_step
    assert set(after) == set(before).difference(knows_the_step if num_steps == 1 else ())
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(after[f"fake_score/{name}"], value) for name, value in teacher.items())
    for name, value in exported(folder).items():
        assert torch.equal(exported(student)[name], value), name


def test_a_fake_score_that_cannot_go_on_is_refused(
    first: Path, stage: Path, teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    def refused(reason: str, **settings: object) -> None:
        with pytest.raises(UsageError, match=reason):
            runs.run(teacher_folder, store, tmp_path, fake_from="last-stage", **settings)

    refused("needs a student to start from", method="dmd2")
    refused("has no fake score", method="lcm", from_student=str(stage))
    refused("the run that made .* had no fake score", method="dmd2", from_student=str(first))
    bare = tmp_path / "bare"
    shutil.copytree(stage, bare, ignore=shutil.ignore_patterns("checkpoints"))
    refused("there is no checkpoint in", method="dmd2", from_student=str(bare))


def test_a_student_is_found_by_its_name_in_the_workspace(
    first: Path, teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    workspace = first.parent.parent
    settings = {"learning_rate": 1e-30, "train_steps": 1, "out": str(tmp_path / "out")}
    student = runs.run(teacher_folder, store, workspace, from_student=first.name, **settings)
    assert torch.equal(*(exported(folder)["proj_out.weight"] for folder in (student, first)))


def test_an_unfinished_run_goes_on_without_the_student_that_it_began_with(
    first: Path, teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(first, copied)
    settings = {"from_student": str(copied), "out": str(tmp_path / "out"), "target_decay": 0.5}
    whole = runs.run(teacher_folder, store, tmp_path, **{**settings, "out": str(tmp_path / "whole")})
    held = Path("checkpoints", "step-000006")  # as if it had been stopped there
    shutil.copytree(whole / held, tmp_path / "out" / held)
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (tmp_path / "out" / "run.json").write_text(record)
    shutil.copy(whole / "metrics.jsonl", tmp_path / "out" / "metrics.jsonl")
    shutil.rmtree(copied)
    resumed = runs.run(teacher_folder, store, tmp_path, **settings)
    runs.assert_same_run(whole, resumed)


def test_what_cannot_be_begun_with_is_refused(first: Path, teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    other = make_sana(tmp_path / "wider", layers=3)
    with pytest.raises(UsageError, match="is not a student: it has no run"):
        runs.run(teacher_folder, store, tmp_path, from_student=str(other))
    write_run(other, {"kind": "student"}, finished=True)
    with pytest.raises(UsageError, match="is a student of another one"):
        runs.run(teacher_folder, store, tmp_path, from_student=str(other))
    with pytest.raises(UsageError, match="there is no student at"):
        runs.run(teacher_folder, store, tmp_path, from_student="no-such-student")
    with pytest.raises(UsageError, match="gives whole weights"):
        runs.run(teacher_folder, store, tmp_path, from_student=str(first), lora_rank=2)


def test_the_command_says_what_is_wrong(
    teacher_folder: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*runs.flags(teacher_folder, store, tmp_path), "--from-student", "nothing"]
    assert main.run(command) == 2
    error = capfd.readouterr().err
    assert "there is no student at nothing" in error and "ddx list students" in error


def test_a_student_of_another_teacher_is_refused_and_another_guidance_is_said(tmp_path: Path) -> None:
    student = make_student("v", tmp_path / "student")
    said: list[str] = []

    def start(teacher: Path) -> None:
        starting_weights(student, load_teacher(teacher), Workspace(tmp_path), (6.0, 16.0), said.append)

    start(tmp_path / "student-teacher")
    assert len(said) == 1 and "guidance 4.5" in said[0] and "6 to 16" in said[0]
    with pytest.raises(UsageError, match="it predicts v, eps predicts eps") as error:
        start(make_stable_diffusion(tmp_path / "eps", "epsilon"))  # weights of the same shapes
    assert error.value.hint and "student-teacher" in error.value.hint
    with pytest.raises(UsageError, match="is a student, not a teacher") as error:
        load_teacher(student)
    assert error.value.hint and "student-teacher" in error.value.hint and "--from-student" in error.value.hint


def test_a_student_by_its_record_of_other_parts_is_refused(tmp_path: Path) -> None:
    teacher = load_teacher(make_sana(tmp_path / "sana"))
    then = {**teacher.fingerprint(), "resolution": 1024}
    student = make_student("flow", tmp_path / "student", teacher_fingerprint=then, teacher_source=teacher.source)
    starting_weights(student, teacher, Workspace(tmp_path))  # drawn at another size
    write_run(student, {"kind": "student", "teacher_fingerprint": {**then, "weights": "sha256:0"}}, finished=True)
    with pytest.raises(UsageError, match="its weights was sha256:0"):
        starting_weights(student, teacher, Workspace(tmp_path))
