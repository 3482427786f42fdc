"""`ddx prepare`: a teacher with norms and a dense time, tuned towards the one that it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline

import distill_runs as runs
from ddx.cli import main
from ddx.errors import UsageError
from ddx.methods.parts.preparation_config import PreparationConfig
from ddx.methods.registry import load_method
from ddx.run_record import read_run
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.prepare import prepare
from ddx.training.prepare_config import PrepareConfig
from ddx.workspace import Workspace
from pipelines import make_stable_diffusion

SETTINGS: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 3, "warmup_steps": 2, "checkpoint_every": 3}
SETTINGS |= {"sample_every": 0, "device": "cpu", "gradient_checkpointing": False, "learning_rate": 3e-3}


def run(teacher: Path, store: Path, workspace: Path, *, train_steps: int = 6, **settings: Any) -> Path:
    values = {**SETTINGS, "teacher": str(teacher), "data": store, "train_steps": train_steps, **settings}
    return prepare(PrepareConfig(**values), workspace=Workspace(workspace))


@pytest.fixture(scope="module")
def prepared(teacher_folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(teacher_folder, store, tmp_path_factory.mktemp("prepared"), train_steps=30)


def velocity(teacher: Teacher) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, *teacher.latent_shape(), generator=generator), torch.linspace(0.2, 0.9, 4).double()
    with torch.no_grad():
        return teacher.predict(teacher.network(), x, t, teacher.null_condition().expand(4))


def test_it_is_a_teacher_of_the_same_stores_with_another_transformer(
    prepared: Path, teacher_folder: Path, store: Path
) -> None:
    before, after = load_teacher(teacher_folder), load_teacher(prepared)
    assert prepared.name == f"{teacher_folder.name}-prepared"
    assert after.fingerprint() == before.fingerprint()
    assert (after.default_guidance, after.default_resolution) == (before.default_guidance, before.default_resolution)
    assert not after.draws_scenes
    config: Any = after.network().config
    assert (config.qk_norm, config.timestep_scale) == ("rms_norm_across_heads", 0.001)
    assert type(after.own_scheduler()) is type(before.own_scheduler())
    record = read_run(prepared) or {}
    assert (record["kind"], record["method"], record["prepared_from"]) == ("teacher", "preparation", before.name)
    assert not (prepared / "README.md").exists()  # the card is that of a student


def test_what_is_prepared_again_is_still_made_of_the_first_one(prepared: Path, teacher_folder: Path) -> None:
    after = load_teacher(prepared)
    again = load_method("preparation", PreparationConfig(), after)
    assert after.made_of == load_teacher(teacher_folder).name == again.export_notes()["prepared_from"]


def test_it_has_learned_to_say_what_its_teacher_says(prepared: Path, teacher_folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line)["loss"] for line in (prepared / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] < 0.3 * lines[0]
    wanted, found = velocity(load_teacher(teacher_folder)), velocity(load_teacher(prepared))
    assert float((found - wanted).square().mean()) < 0.3 * float(wanted.square().mean())


def test_the_pipeline_feeds_it_the_time_that_we_do(prepared: Path) -> None:
    teacher = load_teacher(prepared)
    pipeline = SanaPipeline.from_pretrained(prepared)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def note(_module: Any, _inputs: Any, given: dict[str, Any], output: Any) -> None:
        seen.append((given["hidden_states"] if "hidden_states" in given else _inputs[0], given["timestep"], output[0]))

    pipeline.transformer.register_forward_hook(note, with_kwargs=True)
    pipeline(
        prompt="",
        guidance_scale=1.0,
        num_inference_steps=2,
        output_type="latent",
        height=64,
        width=64,
        use_resolution_binning=False,
    )
    x, time, output = seen[0]
    assert 0.0 < float(time[0]) <= 1.0
    mask_free = teacher.predict(teacher.network(), x, time.double(), teacher.encode_text([""])[0])
    torch.testing.assert_close(mask_free, output, rtol=1e-3, atol=1e-3)


def test_sana_sprint_learns_from_it_on_the_teacher_s_own_store(prepared: Path, store: Path, tmp_path: Path) -> None:
    student = runs.run(prepared, store, tmp_path, method="sana-sprint", train_steps=2)
    record = read_run(student) or {}
    assert record["finished"] and record["teacher"] == str(prepared)
    assert SanaPipeline.from_pretrained(student).transformer.config.timestep_scale == 0.001
    assert all(line["skipped"] == 0 and line["loss"] is not None for line in runs.lines(student))


def test_one_part_alone_can_be_prepared(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    normed = run(teacher_folder, store, tmp_path / "normed", dense_time=False, train_steps=1)
    config: Any = load_teacher(normed).network().config
    assert (config.qk_norm, config.timestep_scale) == ("rms_norm_across_heads", 1.0)
    both = run(normed, store, tmp_path / "both", train_steps=1)
    config = load_teacher(both).network().config
    assert (config.qk_norm, config.timestep_scale) == ("rms_norm_across_heads", 0.001)


def test_a_stopped_one_goes_on_bit_for_bit(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    whole = run(teacher_folder, store, tmp_path / "whole")
    halves = run(teacher_folder, store, tmp_path / "halves")
    record = json.loads((halves / "run.json").read_text())
    (halves / "run.json").write_text(json.dumps({**record, "finished": False}))
    for path in (halves / "checkpoints").glob("step-000006*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    run(teacher_folder, store, tmp_path / "halves")
    found, wanted = (runs.tensors(folder, 6) for folder in (halves, whole))
    assert found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in wanted)


def test_what_cannot_be_prepared_is_refused(prepared: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already"):
        run(prepared, store, tmp_path)
    with pytest.raises(UsageError, match="nothing to prepare"):
        run(prepared, store, tmp_path, qk_norm=False, dense_time=False)
    teacher = load_teacher(make_stable_diffusion(tmp_path / "sd", "epsilon"))
    with pytest.raises(UsageError, match="family stable-diffusion"):
        teacher.prepared_network(qk_norm=True, dense_time=True)


def test_the_command(teacher_folder: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "--teacher", str(teacher_folder), "--data", str(store), "--workspace", str(tmp_path)]
    words += ["--train-steps", "1", "--batch-size", "4", "--sample-every", "0", "--device", "cpu"]
    assert main.run([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"writes    {tmp_path}/teachers/{teacher_folder.name}-prepared" in out and not list(tmp_path.iterdir())
    assert main.run([*words, "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["teacher"])
    assert (folder / "model_index.json").is_file()
    assert main.run([*words, "--quiet"]) == 0  # finished: nothing is done again
    assert main.run(["distill", "--method", "preparation"]) == 2  # it is no method
    assert "unknown method" in capsys.readouterr().err
