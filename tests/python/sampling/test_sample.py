"""`ddx sample`: which student, which prompts, and the files that it leaves."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from ddx.cli.main import run
from ddx.errors import DdxError, UsageError
from ddx.page import Table
from ddx.run_record import write_run
from ddx.sampling.config import SampleConfig
from ddx.sampling.grid import make_grid
from ddx.sampling.page import Column, comparison_page
from ddx.sampling.pipeline import StudentPipeline
from ddx.sampling.prompts import read_prompts, standard_prompts
from ddx.sampling.run import choose_student, sample
from ddx.teachers.families.sana_text import pipeline_defaults
from ddx.teachers.prompts import STANDARD_PROMPTS, scene_prompts
from ddx.workspace import Workspace
from students import make_student


class Page(HTMLParser):
    """Collects what a page refers to, and the tags that are open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.sources: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [str(values[key]) for key in ("src", "srcset") if key in values]
        self.links += [str(values["href"])] if "href" in values else []
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_newest_student_draws_the_standard_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_student("flow", tmp_path / "students" / "tiny-lcm")
    assert run(["sample", "--steps", "1", "--json", "--workspace", str(tmp_path), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert "tiny-lcm (the newest)" in err
    assert [image["prompt"] for image in answer["images"]] == list(STANDARD_PROMPTS)
    assert Path(answer["folder"]) == tmp_path / "samples" / "tiny-lcm"
    for image in answer["images"]:
        assert Image.open(image["path"]).size == (64, 64)
    assert Image.open(answer["grid"]).size == (3 * 66 - 2, 3 * 66 - 2)
    page = Page(Path(answer["page"]).read_text(encoding="utf-8"))
    assert not page.open and len(page.sources) == len(STANDARD_PROMPTS)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all((Path(answer["folder"]) / link).is_file() for link in page.links) and page.links
    assert STANDARD_PROMPTS[0] in page.text and "seed 0" in page.text


def test_prompts_seeds_and_batches(flow_student: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle, and a <blue> square\n\n  two cats \n", encoding="utf-8")
    config = SampleConfig(
        student=flow_student, prompts=prompts, num_images=2, seed=7, steps=2, batch_size=3, out=tmp_path / "out"
    )
    result = sample(config, Workspace(tmp_path))
    drawn = [(item.prompt, item.seed) for item in result.pictures]
    assert drawn == [
        ("a red circle, and a <blue> square", 7),
        ("a red circle, and a <blue> square", 8),
        ("two cats", 7),
        ("two cats", 8),
    ]
    assert Image.open(result.grid).size == (130, 130)
    assert "a red circle, and a <blue> square" in Page(result.page.read_text(encoding="utf-8")).text


def test_a_prompt_with_a_comma_stays_one(
    flow_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--student", str(flow_student), "--prompt", "a cat, a dog", "--prompt", "b", "--json"]
    assert run([*command, "--dry-run", "--workspace", str(tmp_path)]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["pictures"] == 2 and planned["call"]["sigmas"] == [1.0]
    assert not (tmp_path / "samples").exists()


def test_a_long_prompt_is_cut_with_a_word(flow_student: Path, vp_student: Path) -> None:
    """What diffusers itself keeps of it, counted by its own mask, and what is at the border."""
    flow, vp = StudentPipeline(flow_student, device="cpu"), StudentPipeline(vp_student, device="cpu")
    text = "a small red circle above a large blue square, " * 40
    cut = flow.cut(text)
    assert cut is not None
    arguments = {"complex_human_instruction": pipeline_defaults()[0].split("\n"), "do_classifier_free_guidance": False}
    _, mask, *_ = flow.pipeline.encode_prompt(text, device="cpu", max_sequence_length=300, **arguments)
    assert int(mask.sum()) == cut.kept + 1  # the start token
    kept = text.lower().strip().removesuffix(cut.left_out)
    assert kept + cut.left_out == text.lower().strip()
    assert flow.cut(kept) is None
    cut = vp.cut(text)
    assert cut is not None and cut.kept == 75
    read = vp.pipeline.tokenizer(text, truncation=True, max_length=77)["input_ids"][1:-1]
    whole = vp.pipeline.tokenizer(text)["input_ids"][1:-1]
    assert (len(read), len(whole)) == (cut.kept, cut.given)
    assert vp.pipeline.tokenizer.decode(whole[len(read) :]).strip() == cut.left_out


def test_an_empty_and_a_long_prompt_are_drawn_and_said(
    flow_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--student", str(flow_student), "--workspace", str(tmp_path), "--device", "cpu", "--json"]
    assert run([*command, "--prompt", "", "--prompt", "two cats " * 200]) == 0
    out, err = capsys.readouterr()
    assert [image["prompt"] for image in json.loads(out)["images"]] == ["", "two cats " * 200]
    said = [json.loads(line).get("log", "") for line in err.splitlines()]
    assert "prompt 1 is empty: it is drawn without a text" in said
    assert any(line.startswith("prompt 2 is too long: ") and "left out: '" in line for line in said)


def test_a_plan_is_short_and_refuses_what_drawing_would(
    flow_student: Path, vp_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sample", "--steps", "1001", "--dry-run", "--workspace", str(tmp_path), "--student"]
    assert run([*line, str(flow_student)]) == 0
    shown = capsys.readouterr().out
    assert len(shown) < 1000 and "(1001 in all)" in shown
    assert run([*line, str(vp_student)]) == 2
    assert "steps = 1001 is more than the" in capsys.readouterr().err


def test_without_a_student_the_error_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", "--steps", "1", "--workspace", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "there is no student" in lines[-2] and lines[-1].startswith("hint: ") and "ddx distill" in lines[-1]
    write_run(tmp_path / "students" / "half", {"kind": "student"}, finished=False)
    with pytest.raises(DdxError, match="half is not finished"):
        choose_student(None, Workspace(tmp_path))


def test_a_student_is_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "students" / "mine"
    folder.mkdir(parents=True)
    assert choose_student(Path("mine"), Workspace(tmp_path)) == folder
    assert choose_student(Path("other"), Workspace(tmp_path)) == Path("other")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"num_images": 0}, "num_images = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"prompt": ("a",), "prompts": Path("b")}, "together"),
    ],
    ids=["steps", "num-images", "seed", "prompts"],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SampleConfig(**values)  # type: ignore[arg-type]


def test_prompt_files_that_hold_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_prompts(tmp_path / "binary.txt")


def test_students_of_scenes_have_scenes_as_standard_prompts() -> None:
    assert standard_prompts({"teacher": "sana-tiny"}) == scene_prompts()
    assert standard_prompts({"teacher": "sana-600m"}) == STANDARD_PROMPTS
    assert standard_prompts({"validation_prompts": ["x"]}) == ("x",)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_picture_that_is_not_finite_is_an_error_and_no_black_file(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = make_student("flow", tmp_path / "broken")
    weights = student / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(weights).items()}, weights)
    line = {
        "sample": ["--prompt", "a dog", "--out", str(tmp_path / "out")],
        "evaluate": ["--num-images", "6", "--teacher-steps", "1", "--steps", "1", "--out", str(tmp_path / "out")],
    }[command]
    assert run([command, "--student", str(student), *line, "--workspace", str(tmp_path), "--device", "cpu"]) == 1
    *_, error, hint = capsys.readouterr().err.strip().splitlines()
    assert error == "error: broken draws a picture that is not finite" and "learning rate" in hint
    assert not list((tmp_path / "out").glob("*"))


def test_a_teacher_given_as_a_student_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = make_student("flow", tmp_path / "tiny")
    write_run(tmp_path / "tiny-teacher", {"kind": "teacher"}, finished=True)
    for given in ("sana-tiny", str(tmp_path / "tiny-teacher")):
        assert run(["sample", "--student", given, "--workspace", str(tmp_path)]) == 2
        *_, error, hint = capsys.readouterr().err.strip().splitlines()
        assert given in error and "a teacher, not a student" in error and f"--teacher {given}" in hint
    (student / "run.json").unlink()  # it no longer says what it is
    assert run(["sample", "--student", str(student), "--prompt", "a dog", "--workspace", str(tmp_path)]) == 0
    assert f"{student} has no run.json of a student" in capsys.readouterr().err


def test_the_grid_places_every_picture() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    grid = make_grid([Image.new("RGB", (10, 8), colour) for colour in colours], columns=2, gap=2)
    assert grid.size == (22, 18)
    assert [grid.getpixel(at) for at in ((0, 0), (12, 0), (0, 10), (12, 10), (10, 0))] == [*colours, *[(255,) * 3] * 2]


def test_the_comparison_page_is_one_file(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "red")
    large = Image.new("RGB", (1024, 1024), "blue")
    path = comparison_page(
        tmp_path / "index.html",
        title="A <title>",
        lead="lead",
        prompts=["a & b", "c"],
        seeds=[1, 2],
        columns=[
            Column(title="teacher, 20 steps", pictures=[picture, large]),
            Column(title="student, 1 step", pictures=[picture, large], student=True),
        ],
        table=Table(
            headings=["", "overall"], rows=[["teacher", "0.9"], ["student", "0.8"]], student_rows=frozenset({1})
        ),
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and len(page.sources) == 4 and not page.links
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "http" not in text and "<script" not in text and "prefers-color-scheme: dark" in text
    assert "a & b" in page.text and "A <title>" in page.text


def test_pictures_that_are_not_square(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_student("eps", tmp_path / "students" / "tiny")
    asked = ["sample", "--prompt", "a cat", "--num-images", "2", "--workspace", str(tmp_path), "--device", "cpu"]
    assert run([*asked, "--size", "96x64", "--json", "--quiet"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [Image.open(picture["path"]).size for picture in answer["images"]] == [(96, 64)] * 2
    assert Image.open(answer["grid"]).size == (2 * 96 + 2, 64)
    for size, message in (("100x64", "multiples of 16"), ("64", "WIDTHxHEIGHT"), ("0x64", "WIDTHxHEIGHT")):
        assert run([*asked, "--size", size]) == 2
        assert message in capsys.readouterr().err
    assert run([*asked, "--size", "64x64", "--resolution", "64"]) == 2
    assert "give one of them" in capsys.readouterr().err
