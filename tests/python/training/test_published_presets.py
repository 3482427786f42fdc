"""Presets: every key is a setting of the method, every published value cites its work, every departure says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ddx.cli import main
from ddx.config import Settings, read_yaml, to_dict
from ddx.methods.registry import METHODS
from ddx.run_record import write_run
from ddx.teachers.family_of import family_of, weights_are_here
from ddx.teachers.registry import TEACHERS
from ddx.training.preset_file import Preset, is_work, link, read_preset, short
from ddx.training.presets import preset_folder, preset_names, preset_parts, published_for
from ddx.training.recipe import Recipe
from ddx.training.resolve import resolve, resolve_recipe
from ddx.workspace import Workspace

LATER = frozenset(("works", "source", "departures", "title", "methods"))


def a_teacher_of(subject: str) -> str:
    return subject if subject in TEACHERS else next(n for n, spec in TEACHERS.items() if spec.family == subject)


def recipe(**values: Any) -> Recipe:
    return resolve_recipe([Settings(values, "--set")])


def file_of(name: str, method: str) -> Preset:
    return read_preset(preset_folder() / f"{name}.yaml", method)


@pytest.mark.parametrize("name", preset_names())
def test_it_is_found_by_its_name_and_every_value_passes(name: str) -> None:
    subject, method, ending = preset_parts(name)
    for each in [method] if method else METHODS:
        asked = {"teacher": a_teacher_of(subject), "method": each, "preset": ending or name}
        assert recipe(**asked).config.preset == name


@pytest.mark.parametrize("name", preset_names())
def test_it_cites_works_and_gives_reasons(name: str) -> None:
    _, method, _ = preset_parts(name)
    content = read_yaml(preset_folder() / f"{name}.yaml")
    preset = file_of(name, method)
    assert all(is_work(work) for work in preset.works.values()), preset.works
    used = {text.partition(",")[0] for text in preset.source.values()}
    assert used == set(preset.works), "each work is cited, and each citation is a work"
    assert set(preset.source) <= set(preset.settings) | set(preset.departures)
    assert not preset.works or preset.title
    assert set(content) & LATER <= {"title", "works", "source", "departures", "methods"}
    settings = recipe(teacher=a_teacher_of(preset_parts(name)[0]), method=method or "lcm", preset=name).settings
    for key, departure in preset.departures.items():
        assert len(departure.reason) > 10 and departure.published != departure.ours
        assert " " in key or settings[key] == departure.ours, f"{key} is another value in the file"


def test_the_order_in_which_a_preset_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert recipe(teacher="sana-tiny", method="lcm").config.preset == "sana-tiny-lcm"  # teacher and method
    assert recipe(teacher="sana-tiny", method="scm").config.preset == "sana-tiny"  # teacher, before the family
    assert recipe(teacher="sdxl", method="lcm", preset="none").config.preset == "none"
    fine_tune = tmp_path / "mine"
    fine_tune.mkdir()
    (fine_tune / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert recipe(teacher=str(fine_tune), method="lcm").config.preset == "stable-diffusion-lcm"
    assert family_of(str(fine_tune)) == "stable-diffusion" and family_of("nobody/knows-this") is None
    write_run(tmp_path / "prepared", {"prepared_from": "sdxl"}, finished=True)
    for teacher in ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", str(tmp_path / "prepared")):
        assert recipe(teacher=teacher, method="dmd2").config.preset == "sdxl-dmd2"
        assert recipe(teacher=teacher, method="dmd2", preset="lora").config.preset == "sdxl-dmd2-lora"


def test_a_familys_recipe_leaves_the_size_to_the_teacher() -> None:
    """Its teachers are of several sizes."""
    assert not [name for name in preset_names() if "resolution" in file_of(name, preset_parts(name)[1]).settings]


def test_what_a_method_was_published_for() -> None:
    assert {"sdxl", "stable-diffusion", "pixart-alpha"} == set(published_for("lcm"))
    assert published_for("dde") == ()


def test_a_value_names_where_it_is_from() -> None:
    found = resolve_recipe(
        [Settings({"teacher": "sdxl", "clip_norm": 2}, "ddx.yaml"), Settings({"batch_size": "4"}, "the flags")]
    )
    origins = found.origins
    assert origins["learning_rate"] == "published: huggingface/diffusers [1]"
    assert origins["batch_size"] == "yours: --batch-size" and origins["clip_norm"] == "yours: ddx.yaml"
    assert origins["seed"] == "ddx: default"
    assert recipe(teacher="sana-tiny").origins["batch_size"] == "ddx: preset sana-tiny-lcm"
    assert recipe(teacher="sana-tiny", method="scm", preset="none").origins["optimizer"] == "ddx: default of scm"
    assert set(origins) == set(found.settings)


def test_a_run_keeps_the_preset_that_it_began_with(tmp_path: Path) -> None:
    """One that began before its family had a preset, or with other values in it, goes on unchanged."""
    workspace = Workspace(tmp_path)
    layers = [Settings({"teacher": "sdxl", "seed": 3}, "the flags")]
    started = workspace.new_student_path("sdxl", "lcm")
    plain, *_ = resolve([*layers, Settings({"preset": "none"}, "the flags")])
    record = {"kind": "student", "teacher": "sdxl", "method": "lcm", "config": to_dict(plain)}
    write_run(started, record, finished=False)
    assert resolve(layers)[0] != plain and resolve(layers, workspace)[0] == plain
    older = {**to_dict(plain), "preset": "sdxl-lcm", "batch_size": 7, "resolution": 1024}  # another value, a key less
    write_run(started, {**record, "config": older}, finished=False)
    assert to_dict(resolve(layers, workspace)[0]) == older
    write_run(started, {**record, "preset_settings": {"batch_size": 5}}, finished=False)
    assert resolve(layers, workspace)[0].batch_size == 5
    elsewhere = [*layers, Settings({"out": str(tmp_path / "new")}, "the flags")]
    assert resolve(elsewhere, workspace)[0].preset == "sdxl-lcm"
    named = [*layers, Settings({"preset": "sdxl-lcm"}, "the flags")]
    assert resolve(named, workspace)[0].preset == "sdxl-lcm"


def test_a_work_is_cited_in_short_and_linked() -> None:
    file = "NVlabs/Sana@50008948:configs/a/b.yaml"
    assert is_work(file) and short(file) == "NVlabs/Sana"
    assert link(file) == "https://github.com/NVlabs/Sana/blob/50008948/configs/a/b.yaml"
    assert is_work("arXiv:2310.04378") and link("arXiv:2310.04378").endswith("/abs/2310.04378")
    assert not is_work("NVlabs/Sana:configs/a/b.yaml") and not is_work("a blog")


@pytest.mark.parametrize("width", [80, 120])
def test_a_dry_run_prints_the_recipe_of_a_teacher_that_is_not_here(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", str(width))
    line = ["distill", "--method", "lcm", "--teacher", "pixart-alpha", "--batch-size", "4", "--dry-run"]
    line += ["--micro-batch-size", "4"]  # a short step to count
    assert main.run([*line, "--workspace", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    table = printed[printed.index("setting") :].splitlines()
    assert all(len(row) <= width for row in table)
    rows = {row.split()[0]: " ".join(row.split()[1:]) for row in table if row.strip()}
    assert (
        rows["learning_rate"].startswith("2e-05 published: PixArt-alpha/PixArt-alpha")
        and rows["batch_size"] == "4 yours: --batch-size"
    )
    assert "weights of pixart-alpha are not here" in printed and "configs/pixart_config/" in printed
    assert "GiB at the peak" in printed
    if width == 80:
        return
    assert main.run([*line, "--json", "--workspace", str(tmp_path / "runs")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["from"]["batch_size"] == "yours: --batch-size" and plan["seconds"] is None
    assert not (tmp_path / "runs").exists()


def test_whether_a_teachers_weights_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights_are_here("sana-tiny") and weights_are_here(str(tmp_path))
    assert not weights_are_here("flux1-dev") and not weights_are_here("nobody/knows-this")
