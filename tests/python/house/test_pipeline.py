"""`ddx run`: stages get each other's outputs, are skipped when done, and a malformed file is explained."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddx.cli import main
from ddx.cli.invocation import find_config
from ddx.cli.pipeline import Runner, read_pipeline
from ddx.cli.pipeline_check import check
from ddx.config import Settings
from ddx.data.store import Store
from ddx.errors import UsageError
from ddx.run_record import write_run
from ddx.training.resolve import resolve
from ddx.workspace import Workspace


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_stages_hand_over(tmp_path: Path) -> None:
    stages = [
        ("precompute", {"sources": ["laion.parquet"], "teacher": "sana-tiny"}),
        ("distill", {"method": "lcm", "train_steps": 3}),
        ("sample", {"steps": 1}),
    ]
    precompute, distill, sample = Runner(Workspace(tmp_path), "mine").resolve(stages)
    assert precompute.output == tmp_path / "data/laion-sana-tiny-mine.zarr"
    assert f"data={precompute.output}" in distill.arguments
    assert "teacher=sana-tiny" in distill.arguments
    assert f"student={distill.output}" in sample.arguments
    assert precompute.command_line().startswith("ddx precompute laion.parquet --set teacher=sana-tiny")


def test_one_distillation_begins_with_the_student_of_another(tmp_path: Path) -> None:
    second = ("distill", {"method": "diff-instruct", "from_student": "{student}"})
    entries = [("distill", {"method": "lcm", "teacher": "sana-tiny"}), second, ("sample", {})]
    lcm, further, sample = Runner(Workspace(tmp_path), "mine").resolve(entries)
    assert lcm.output is not None and lcm.output != further.output
    assert f"from_student={lcm.output}" in further.arguments and lcm.output in further.reads
    assert f"student={further.output}" in sample.arguments
    with pytest.raises(UsageError, match="there is none"):
        Runner(Workspace(tmp_path), "mine").resolve([second])


def test_an_average_has_the_students_that_it_names_and_is_one(tmp_path: Path) -> None:
    entries = [
        ("distill", {"method": "lcm", "teacher": "sana-tiny"}),
        ("distill", {"method": "diff-instruct", "from_student": "{student}"}),
        ("distill", {"method": "sid", "from-student": "{student 1}"}),
        ("average", {"students": ["{student 2}", "{student}", "runs/other"], "weights": [4, 1, 1]}),
        ("sample", {}),
        ("evaluate", {"student": "{student 3}"}),
    ]
    lcm, second, third, average, sample, evaluate = Runner(Workspace(tmp_path), "mine").resolve(entries)
    assert f"from_student={lcm.output}" in third.arguments
    assert average.arguments[:3] == (str(second.output), str(third.output), "runs/other")
    assert average.output == tmp_path / "students/average-mine" and f"out={average.output}" in average.arguments
    assert {second.output, third.output} <= set(average.reads)
    assert f"student={average.output}" in sample.arguments and f"student={third.output}" in evaluate.arguments
    entries[2] = ("distill", {"from_student": "{student 3}"})
    with pytest.raises(UsageError, match="the stages before it make 2") as error:
        Runner(Workspace(tmp_path), "mine").resolve(entries)
    assert error.value.hint and '"{student 2}"' in error.value.hint


def test_a_pipeline_averages_its_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, table = tmp_path / "runs", tmp_path / "pairs.parquet"

    def run(weights: str) -> list[bool]:
        text = (
            f"stages:\n  - scenes: {{out: {table}, rows: 8}}\n"
            f"  - precompute: {{sources: [{table}], teacher: sana-tiny, device: cpu}}\n"
            "  - distill: {method: lcm, train_steps: 2, batch_size: 2, sample_every: 0, watch: false, device: cpu}\n"
            "  - distill: {method: ect, train_steps: 2, batch_size: 2, sample_every: 0, watch: false, device: cpu,"
            ' from_student: "{student}"}\n'
            f'  - average: {{students: ["{{student 1}}", "{{student 2}}"], weights: {weights}}}\n'
            "  - sample: {steps: 1, num_images: 1}\n"
        )
        assert main.run(["run", str(write(tmp_path / "p.yaml", text)), "--workspace", str(runs), "--json"]) == 0
        return [stage["skipped"] for stage in json.loads(capsys.readouterr().out)["stages"]]

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(runs / "students" / name / "transformer/diffusion_pytorch_model.safetensors")

    assert run("[4, 1]") == [False] * 6
    first, second, mean = (weights(name) for name in ("sana-tiny-lcm-p", "sana-tiny-ect-p", "average-p"))
    assert any(not torch.equal(first[key], second[key]) for key in mean)
    for key, value in mean.items():
        torch.testing.assert_close(value, 0.8 * first[key] + 0.2 * second[key])
    assert run("[4, 1]") == [True] * 6
    assert run("[1, 1]") == [True, True, True, True, False, False]  # the former average is kept beside it
    assert {path.name for path in (runs / "students").iterdir()} >= {"average-p", "average-p-1"}


def test_what_follows_a_preparation_has_the_prepared_teacher_and_its_store(tmp_path: Path) -> None:
    entries = [
        ("precompute", {"sources": ["laion.parquet"], "teacher": "sana-tiny"}),
        ("prepare", {"train_steps": 3}),
        ("distill", {"method": "sana-sprint"}),
        ("evaluate", {}),
    ]
    precompute, prepare, distill, evaluate = Runner(Workspace(tmp_path), "mine").resolve(entries)
    assert prepare.output == tmp_path / "teachers/sana-tiny-prepared-mine"
    assert {"teacher=sana-tiny", f"data={precompute.output}", f"out={prepare.output}"} <= set(prepare.arguments)
    for stage in (distill, evaluate):
        assert f"teacher={prepare.output}" in stage.arguments and prepare.output in stage.reads
    assert f"data={precompute.output}" in distill.arguments and precompute.output in distill.reads


@pytest.mark.parametrize("name", ["demo", "chain", "one-step"])
def test_the_pipelines_that_come_along_have_settings_that_fit(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["run", name, "--workspace", str(tmp_path), "--dry-run", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in stages][:3] == ["scenes", "precompute", "distill"]
    methods = []
    for command, settings in read_pipeline(find_config(name), workspace=tmp_path):
        if command == "distill":
            config, *_ = resolve([Settings(settings, name)])
            assert config.from_student is None or methods
            methods.append(config.method)
    assert methods[0] == "lcm" and "diff-instruct" in methods[1:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stagse: []", "unknown key `stagse`"),
        ("stages: []", "lists no stages"),
        ("stages: [distil: {}]", "unknown stage `distil`"),
        ("stages: [{distill: {}, sample: {}}]", "stage 1"),
        ("stages: [{distill: 3}]", "not a mapping"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_pipeline(write(tmp_path / "p.yaml", text))


def test_progress_is_for_people_unless_the_answer_is_asked_for_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = write(tmp_path / "p.yaml", f"stages:\n  - scenes: {{out: {tmp_path / 'pairs.parquet'}, rows: 4}}\n")
    words = ["run", str(pipeline), "--workspace", str(tmp_path / "runs"), "--again"]
    assert main.run(words) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("[1/1] ddx scenes") and said[1] == "scenes: 4 pictures"
    assert main.run([*words, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["log"].startswith("[1/1] ddx scenes") and lines[1]["stage"] == "scenes"


def test_a_done_stage_is_skipped_until_its_settings_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, out = tmp_path / "runs", tmp_path / "pairs.parquet"
    pipeline = tmp_path / "p.yaml"

    def run(rows: int) -> bool:
        write(pipeline, f"stages:\n  - scenes: {{out: {out}, rows: {rows}, seed: 1}}\n")
        assert main.run(["run", str(pipeline), "--workspace", str(workspace), "--json", "--quiet"]) == 0
        (stage,) = json.loads(capsys.readouterr().out)["stages"]
        return bool(stage["skipped"])

    assert [run(4), run(4), run(5)] == [False, True, False]
    out.unlink()
    assert run(5) is False


def test_what_is_made_anew_does_not_replace_what_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"

    def run(rows: int, *more: str) -> list[bool]:
        text = (
            f"stages:\n  - scenes: {{out: {tmp_path / 'pairs.parquet'}, rows: {rows}}}\n"
            f"  - precompute: {{sources: [{tmp_path / 'pairs.parquet'}], teacher: sana-tiny, device: cpu}}\n"
        )
        line = ["run", str(write(tmp_path / "p.yaml", text)), "--workspace", str(runs), "--json", *more]
        assert main.run(line) == 0
        return [stage["skipped"] for stage in json.loads(capsys.readouterr().out)["stages"]]

    def rows() -> dict[str, int]:
        return {path.name: Store(path).rows for path in (runs / "data").iterdir()}

    assert run(4) == [False, False] and run(4) == [True, True]
    assert run(6) == [False, False]  # the table is another, so the store is too
    assert rows() == {"pairs-sana-tiny-p.zarr": 6, "pairs-sana-tiny-p-1.zarr": 4}
    assert run(6, "--again") == [False, False]
    assert sorted(rows().values()) == [4, 6, 6]


def test_a_stage_that_was_stopped_while_it_was_made_anew_goes_on_with_its_own(tmp_path: Path) -> None:
    runner = Runner(Workspace(tmp_path), "mine")
    (stage,) = runner.resolve([("distill", {"method": "lcm", "teacher": "sana-tiny"})])
    assert stage.output is not None
    stage.output.mkdir(parents=True)
    write_run(runner._folder(stage), {"arguments": []}, finished=True)
    runner._set_aside(stage)
    former = stage.output.with_name(f"{stage.output.name}-1")
    assert former.is_dir() and not stage.output.exists()
    stage.output.mkdir()  # begun, and stopped
    runner._set_aside(stage)
    assert stage.output.is_dir() and len(list(stage.output.parent.iterdir())) == 2


def test_a_preparation_is_checked_too(tmp_path: Path) -> None:
    source = write(tmp_path / "laion.parquet", "")
    for steps in (3, "few"):
        entries = [("precompute", {"sources": [str(source)]}), ("prepare", {"train_steps": steps})]
        stages = Runner(Workspace(tmp_path), "mine").resolve(entries)
        wrong = pytest.raises(UsageError, match="train_steps = 'few' in stage 2") if steps == "few" else nullcontext()
        with wrong:
            check(stages, Workspace(tmp_path))


def test_a_failing_stage_gives_its_own_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = write(tmp_path / "p.yaml", "stages:\n  - precompute: {sources: [none.parquet], teacher: sana-tiny}\n")
    assert main.run(["run", str(pipeline), "--workspace", str(tmp_path / "runs")]) in (1, 2)
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("hint: ")


SCENES = {"scenes": {"out": "pairs.parquet", "rows": 4}}
STORE = {"precompute": {"sources": ["pairs.parquet"], "teacher": "sana-tiny"}}
DISTILL = {"distill": {"method": "lcm", "teacher": "sana-tiny"}}


@pytest.mark.parametrize(
    ("stages", "message", "hint"),
    [
        ([SCENES, DISTILL, STORE], "stage 2 (`distill`) needs a store, which `precompute` makes after it", "put"),
        ([SCENES, STORE, {"sample": {}}, DISTILL], "stage 3 (`sample`) needs a student, which `distill` makes", "put"),
        (
            [STORE, SCENES],
            "stage 1 (`precompute`) reads pairs.parquet, which `scenes` makes after it",
            "`scenes` first",
        ),
        ([{"sample": {}}], "no stage before it makes one, and runs holds none", "`distill` stage before it"),
        ([STORE], "reads pairs.parquet, which does not exist", "check the path"),
        ([{"precompute": {"teacher": "sana-tiny"}}], "stage 1 (`precompute`) has no `sources`", "[pairs.parquet]"),
        ([SCENES, STORE, {"distill": {"teacher": "sd15"}}], "has the teacher sd15", "precompute stage of that teacher"),
        ([SCENES, STORE, {"distill": {"lr": 1e-4}}], "unknown key `lr` in stage 3 (`distill`)", "`learning_rate`"),
        ([SCENES, STORE, DISTILL, {"average": {}}], "stage 4 (`average`) has no `students`", "{student 1}"),
        ([SCENES, STORE, DISTILL, {"average": {"students": ["{student}"]}}], "has one student", "{student 1}"),
        (
            [SCENES, STORE, DISTILL, {"average": {"students": ["{student}", "x"], "weights": "3"}}],
            "1 weights for 2 students",
            "one for each",
        ),
        ([SCENES, STORE, DISTILL, {"sample": {"steps": "few"}}], "steps = 'few' in stage 4", "for example steps: 1"),
        ([SCENES, STORE, DISTILL, {"distill": {"out": "runs/students/sana-tiny-lcm-p"}}], "both write", "`out`"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    stages: list[object],
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.yaml", json.dumps({"stages": stages}))
    assert main.run(["run", "p.yaml", "--workspace", "runs"]) == 2
    error, cure = capsys.readouterr().err.splitlines()[-2:]
    assert message in error and hint in cure
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


def test_each_stage_has_the_store_and_the_student_of_its_teacher(tmp_path: Path) -> None:
    entries = [
        ("precompute", {"sources": ["a.parquet"], "teacher": "sana-tiny"}),
        ("precompute", {"sources": ["a.parquet"], "teacher": "sd15"}),
        ("distill", {"teacher": "sana-tiny"}),
        ("distill", {"teacher": "sd15"}),
        ("distill", {"teacher": "sd15", "seed": 1}),
        ("evaluate", {"teacher": "sana-tiny"}),
        ("evaluate", {"reference": "real", "metrics": ["fid", "kid"]}),
        ("sample", {}),
    ]
    tiny, sd15, first, second, third, evaluate, real, sample = Runner(Workspace(tmp_path), "mine").resolve(entries)
    assert f"data={tiny.output}" in first.arguments and f"data={sd15.output}" in second.arguments
    assert third.output != second.output  # of one teacher and method, and not the same student
    assert not any(
        text.startswith("teacher=") for text in real.arguments
    )  # its thousands of pictures are not asked for
    assert f"student={first.output}" in evaluate.arguments and f"student={third.output}" in sample.arguments


def test_an_average_is_of_the_teacher_of_its_students(tmp_path: Path) -> None:
    entries = [
        ("distill", {"teacher": "sana-tiny"}),
        ("distill", {"teacher": "sana-tiny", "seed": 1}),
        ("distill", {"teacher": "sd15"}),
        ("average", {"students": ["{student 1}", "{student 2}"]}),
        ("evaluate", {"teacher": "sana-tiny"}),
        ("evaluate", {"teacher": "sd15"}),
    ]
    *_, sd15, average, evaluate, other = Runner(Workspace(tmp_path), "mine").resolve(entries)
    assert f"student={average.output}" in evaluate.arguments and f"student={sd15.output}" in other.arguments


def test_a_pipeline_ends_with_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs.parquet"
    pipeline = write(tmp_path / "p.yaml", f"stages:\n  - scenes: {{out: {out}, rows: 4}}\n")
    line = ["run", str(pipeline), "--workspace", str(tmp_path / "runs"), "--quiet"]
    assert main.run(line) == 0
    assert capsys.readouterr().out.split() == ["scenes", str(out)]
    assert main.run(line) == 0
    assert capsys.readouterr().out.strip().endswith("(done before)")
