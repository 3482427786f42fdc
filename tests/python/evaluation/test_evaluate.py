"""`ddx evaluate`: the table's shape, what it is made from, and what a second run keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddx.cli.main import run
from ddx.errors import UsageError
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.evaluate import evaluate
from ddx.evaluation.scores import are_scenes, scene_scores
from ddx.sampling.card import SCORES_NAME
from ddx.scenes.captions import parse_caption, sample_captions
from ddx.scenes.render import render
from ddx.workspace import Workspace
from hears import Heard

SMALL = ["--num-images", "6", "--set", "diversity_captions=1", "--set", "diversity_seeds=3", "--device", "cpu"]


def test_the_answer_has_a_row_for_each_sampler(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(sample_captions(6, seed=0)))
    command = ["evaluate", "--student", str(student), "--teacher-steps", "3,1", "--steps", "1,2", "--json", *SMALL]
    assert run([*command, "--prompts", str(captions), "--workspace", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    rows = answer["rows"]
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("teacher", 3),
        ("teacher", 1),
        ("student", 1),
        ("student", 2),
    ]
    for row in rows:
        assert 0 <= row["overall"] <= 1 and 0 <= row["precision"] <= 1 and 0 <= row["recall"] <= 1
        assert row["frechet"] > 0 and row["seconds_per_image"] > 0 and row["diversity"] > 0
    assert rows[0]["diversity"] == 1.0
    report = json.loads(Path(answer["report"]).read_text())
    assert report["rows"] == rows and report["reference"] == "rendered held-out scenes"
    page = Path(answer["page"]).read_text(encoding="utf-8")
    assert page.count("<img") == 6 * 4 and "http" not in page
    assert json.loads((student / SCORES_NAME).read_text())["rows"] == rows
    assert "| student | 2 |" in (student / "README.md").read_text(encoding="utf-8")


def test_other_prompts_are_compared_with_the_teacher(student: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        student=student,
        teacher_steps=(2, 1),
        steps=(1,),
        guidance=(1.0, 4.5),
        num_images=5,
        diversity_seeds=2,
        device="cpu",
    )
    heard = Heard()
    result = evaluate(config, Workspace(tmp_path), heard)
    assert result.facts["size"] == "64x64"
    assert "scored at 64x64; the student was trained at 64x64, 96x64" in heard.said
    assert {row["overall"] for row in result.rows} == {None}
    first = result.rows[0]
    assert first["frechet"] == pytest.approx(0.0, abs=1e-6) and first["precision"] == first["recall"] == 1.0
    sweep = result.facts["guidance_sweep"]
    assert [(one["steps"], one["guidance"]) for one in sweep] == [(2, 1.0), (2, 4.5), (1, 1.0), (1, 4.5)]
    one_step = [one for one in sweep if one["steps"] == 1]
    best = min(one_step, key=lambda one: one["frechet"])
    assert result.rows[1]["guidance"] == best["guidance"]


def test_the_teachers_pictures_are_kept(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddx.evaluation import drawing

    config = EvaluateConfig(
        student=student, teacher_steps=(2,), steps=(1,), num_images=4, diversity_seeds=2, device="cpu"
    )
    first = evaluate(config, Workspace(tmp_path))
    drawn = []
    original = drawing.draw_with_teacher
    monkeypatch.setattr(drawing, "draw_with_teacher", lambda *a, **k: drawn.append(1) or original(*a, **k))
    second = evaluate(config, Workspace(tmp_path))
    assert not drawn
    assert second.rows[0] == first.rows[0]
    (kept,) = (tmp_path / "cache" / "teacher-pictures").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])  # a damaged file is drawn again
    assert evaluate(config, Workspace(tmp_path)).rows[0]["frechet"] == pytest.approx(first.rows[0]["frechet"])
    assert drawn


def test_another_sampler_draws_other_pictures_and_keeps_its_own(student: Path, tmp_path: Path) -> None:
    teacher = str(student.with_name(student.name + "-teacher"))

    def scored(sampler: str) -> list[dict[str, Any]]:
        config = EvaluateConfig(
            teacher=teacher, sampler=sampler, teacher_steps=(2,), num_images=4, diversity_seeds=2, device="cpu"
        )
        result = evaluate(config, Workspace(tmp_path))
        assert result.facts["sampler"] == sampler and result.page is not None
        assert ("Sampler of the teacher" in result.page.read_text(encoding="utf-8")) == (sampler != "own")
        return result.rows

    own, heun = scored("own"), scored("heun")
    kept = sorted((tmp_path / "cache" / "teacher-pictures").glob("*.npz"))
    first, second = (np.load(path)["images"].astype(int) for path in kept)
    assert abs(first - second).max() > 2
    assert (scored("own"), scored("heun")) == (own, heun)
    assert sorted((tmp_path / "cache" / "teacher-pictures").glob("*.npz")) == kept


def test_a_teacher_alone_is_scored(student: Path, tmp_path: Path) -> None:
    teacher = str(student.with_name(student.name + "-teacher"))
    config = EvaluateConfig(teacher=teacher, teacher_steps=(1,), num_images=4, diversity_seeds=2, device="cpu")
    result = evaluate(config, Workspace(tmp_path))
    assert [row["model"] for row in result.rows] == ["teacher"] and result.student is None


def test_the_checker_marks_rendered_scenes() -> None:
    captions = sample_captions(60, seed=1)
    pictures = render([parse_caption(caption) for caption in captions], seed=2)
    scores = scene_scores(pictures, captions)
    assert scores["overall"] is not None and scores["overall"] >= 0.97
    wrong = scene_scores(np.roll(pictures, 7, axis=0), captions)
    assert wrong["overall"] is not None and wrong["overall"] < 0.1
    assert scene_scores(pictures[:1] * 0, ["a red circle"])["relation"] is None  # nothing is said about it
    assert are_scenes(captions, 64) and not are_scenes(captions, 128) and not are_scenes(["a cat"], 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_images": 2}, "num_images = 2 is too few"),
        ({"steps": ()}, "steps"),
        ({"teacher_steps": (0,)}, "teacher_steps"),
        ({"diversity_seeds": 1}, "diversity_seeds = 1"),
    ],
    ids=["too-few", "no-steps", "zero-steps", "one-seed"],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EvaluateConfig(**values)  # type: ignore[arg-type]
