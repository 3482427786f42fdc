"""`ddx average`: the mean of students, as a student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ddx.cli import main
from ddx.errors import DdxError, UsageError
from ddx.export.average import average
from ddx.export.config import AverageConfig
from ddx.run_record import read_run, write_run
from ddx.sampling.student import StudentFolder
from ddx.workspace import Workspace
from hears import Heard
from students import make_student


def pair(folder: Path, dtype: torch.dtype = torch.float32, kind: str = "flow") -> tuple[Path, Path]:
    """Two students of one teacher: the second has other weights."""
    first = make_student(kind, folder / "first", dtype=dtype, max_steps=4)
    second = folder / "second"
    shutil.copytree(first, second)
    move(second, 1)
    return first, second


def move(student: Path, seed: int) -> None:
    """Give a student other weights of the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    for file in student.glob("**/*.safetensors"):
        if file.parent.name == StudentFolder(student).denoiser_part:
            state = load_file(file)
            moved = {k: v + torch.randn(v.shape, generator=generator).to(v.dtype) * 0.1 for k, v in state.items()}
            save_file(moved, file, metadata={"format": "pt"})


def made(students: list[Path], out: Path, **config: Any) -> Path:
    return average(students, AverageConfig(out=out, **config), workspace=Workspace(out.parent / "runs"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["flow", "eps"])
def test_weights_are_the_weighted_mean(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    first, second = pair(tmp_path, dtype, kind)
    out = made([first, second], tmp_path / "out", weights=(3.0, 1.0))
    ours, theirs, mean = (StudentFolder(folder).weights() for folder in (first, second, out))
    assert mean.keys() == ours.keys()
    for name, value in mean.items():
        expected = (3.0 * ours[name].double() + theirs[name].double()) / 4.0
        assert value.dtype == dtype
        assert torch.equal(value, expected.to(dtype)), name


def test_a_student_averaged_with_itself_stays_as_it_is(tmp_path: Path) -> None:
    first = make_student("flow", tmp_path / "first", dtype=torch.bfloat16)
    out = made([first, first, first], tmp_path / "out")
    for name, value in StudentFolder(first).weights().items():
        assert torch.equal(StudentFolder(out).weights()[name], value), name


def test_the_average_is_a_plain_pipeline_that_draws_as_ddx_draws_it(tmp_path: Path) -> None:
    import diffusers

    first, second = pair(tmp_path)
    (first / "scores.json").write_text(json.dumps({"rows": [{"model": "student", "steps": 1}]}))
    out = made([first, second], tmp_path / "out")
    command = ["sample", "--student", str(out), "--steps", "1", "--prompt", "a red circle", "--seed", "3"]
    assert main.run([*command, "--num-images", "1", "--out", str(tmp_path / "drawn"), "--quiet"]) == 0
    pipeline = diffusers.SanaPipeline.from_pretrained(out)
    call = StudentFolder(out).call_arguments(1)
    generator = torch.Generator().manual_seed(3)
    drawn = pipeline("a red circle", generator=generator, output_type="np", **call).images[0]
    (file,) = (path for path in (tmp_path / "drawn").glob("*.png") if path.name != "grid.png")
    picture = torch.tensor(list(Image.open(file).convert("RGB").tobytes())).reshape(drawn.shape)
    assert torch.equal(picture, torch.tensor((drawn * 255).round().astype("int64")))
    record = read_run(out)
    assert record is not None and record["finished"]
    assert [one["share"] for one in record["average_of"]] == [0.5, 0.5]
    assert [Path(one["student"]).name for one in record["average_of"]] == ["first", "second"]
    assert "seed" not in record and "images_seen" not in record and record["guidance"] == 4.5
    assert "first (0.5), second (0.5)" in (out / "README.md").read_text()
    assert not (out / "scores.json").exists()


def test_weights_for_each_number_of_steps_are_averaged_each(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    inside = {"1": ".", "2": "steps-2", "4": "steps-4"}
    for seed, folder in enumerate((first, second)):
        for number, name in enumerate(("steps-2", "steps-4")):
            shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("steps-*"))
            move(tmp_path / "copy", 10 * seed + number)
            shutil.move(tmp_path / "copy", folder / name)
        write_run(folder, {**(read_run(folder) or {}), "step_folders": inside}, finished=True)
    out = made([first, second], tmp_path / "out")
    for name in inside.values():
        ours, theirs, mean = (StudentFolder(f).weights(f / name) for f in (first, second, out))
        assert all(torch.equal(mean[k], ((ours[k].double() + theirs[k].double()) / 2).float()) for k in ours)
    write_run(second, {**(read_run(second) or {}), "step_folders": {"1": "."}}, finished=True)
    with pytest.raises(UsageError, match="not the same numbers"):
        made([first, second], tmp_path / "again")


def test_what_differs_in_drawing_is_said(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    write_run(second, {**(read_run(second) or {}), "guidance": 7.0, "max_steps": 1}, finished=True)
    heard = Heard()
    out = average([first, second], AverageConfig(out=tmp_path / "out"), progress=heard)
    assert heard.said == ["second has another guidance, max_steps: the average is drawn as first is"]
    assert StudentFolder(out).guidance == 4.5
    average([first, first], AverageConfig(out=tmp_path / "same"), progress=heard)
    assert len(heard.said) == 1


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    wider = make_student("flow", tmp_path / "wider", layers=3)
    of_another = tmp_path / "other"
    shutil.copytree(second, of_another)
    for folder, weights in ((first, "sha256:1"), (second, "sha256:1"), (of_another, "sha256:2")):
        record = {**(read_run(folder) or {}), "teacher_fingerprint": {"weights": weights}}
        write_run(folder, record, finished=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for students, config, words in (
        ([first], {}, "two students or more: 1 named"),
        ([first, second], {"weights": (1.0,)}, "1 for 2 students"),
        ([first, of_another], {}, "students of two teachers"),
        ([first, make_student("eps", tmp_path / "eps")], {}, "students of two teachers"),
        ([first, wider], {}, "do not fit each other: transformer_blocks.2"),
        ([first, tmp_path / "nothing"], {}, "there is no student at"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            made(students, tmp_path / "out", **config)  # type: ignore[arg-type]
        assert error.value.hint
        assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="full exists"):
        made([first, second], tmp_path / "full")
    with pytest.raises(UsageError, match="must all be above 0"):
        AverageConfig(weights=(1.0, -1.0))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DdxError, match="cannot write"):
        average([first, second], AverageConfig(out=tmp_path / "file" / "out"))
    (weights,) = (second / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DdxError, match="cannot read"):
        made([first, second], tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = pair(tmp_path)
    words = ["average", str(first), str(second), "--weights", "3,1", "--workspace", str(tmp_path / "runs")]
    assert main.run([*words, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["average_of"] == {str(first): 0.75, str(second): 0.25}
    assert not (tmp_path / "runs").exists()
    assert main.run([*words, "--json"]) == 0
    student = Path(json.loads(capsys.readouterr().out)["student"])
    assert str(student) == planned["out"] and student.parent == tmp_path / "runs" / "students"
    assert main.run(["average", "--workspace", str(tmp_path / "runs")]) == 2
    assert "two students or more" in capsys.readouterr().err
    assert main.run(["soup", str(first), str(second)]) == 2
    assert "ddx average" in capsys.readouterr().err
