"""Methods that learn from pairs of noise and picture which a store holds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import distill_runs as runs
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.errors import UsageError
from ddx.methods import dmd, reflow
from ddx.methods.parts import pairs
from ddx.teachers.samplers.sampler import TeacherSampler
from distilling import CAPTIONS
from hears import Heard


@pytest.fixture(scope="module")
def synthetic(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    pq.write_table(
        pa.table({"caption": [f"{CAPTIONS[row % 4]} {row}" for row in range(12)]}), folder / "captions.parquet"
    )
    config = PrecomputeConfig(
        teacher=str(teacher_folder), out=folder / "drawn.zarr", device="cpu", synthetic=True, synthetic_steps=2
    )
    return precompute(config, [str(folder / "captions.parquet")])


@pytest.mark.parametrize("method", ["reflow", "dmd", "ladd"])
def test_stored_pairs_train_a_student(method: str, teacher_folder: Path, synthetic: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"pairs": "stored"}
    if method == "ladd":
        asked = {"regression_weight": 1.0, "misaligned": True}
    student = runs.run(teacher_folder, synthetic, tmp_path, method=method, train_steps=2, **asked)
    record = json.loads((student / "run.json").read_text())
    assert record["finished"] and record["synthetic_share"] == 1.0 and record["skipped_steps"] == 0
    assert asked.items() <= record["config"].items()


def test_each_row_brings_its_own_noise(
    teacher_folder: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise and latents of a row meet in the loss: from one the teacher's solver goes to the other."""
    from ddx.teachers.registry import load_teacher

    seen: list[tuple[Any, ...]] = []
    losses = reflow.ReFlow.losses

    def watched(self: Any, turn: Any, batch: Any, networks: Any) -> Any:
        seen.append((batch.noise, batch.x0, batch.condition))
        return losses(self, turn, batch, networks)

    monkeypatch.setattr(reflow.ReFlow, "losses", watched)
    runs.run(teacher_folder, synthetic, tmp_path, method="reflow", pairs="stored", train_steps=1)
    teacher = load_teacher(teacher_folder, device="cpu")
    assert [len(noise) for noise, _, _ in seen] == [3, 1]  # micro-batches
    for noise, x0, condition in seen:
        drawn = teacher.sample(condition, teacher.null_condition(), num_steps=2, noise=noise)
        torch.testing.assert_close(drawn, x0, rtol=2e-3, atol=2e-3)


def test_a_store_without_pairs_or_at_another_guidance_is_refused(
    teacher_folder: Path, store: Path, synthetic: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not all drawn by the teacher"):
        runs.run(teacher_folder, store, tmp_path, method="reflow", pairs="stored")
    ranged = {"guidance_min": 2.0, "guidance_max": 4.5}
    for settings in ({"guidance_min": 3.0, "guidance_max": 3.0}, ranged):
        with pytest.raises(UsageError, match=r"drawn at guidance 4\.5"):
            runs.run(teacher_folder, synthetic, tmp_path, method="dmd", pairs="stored", **settings)


def test_pairs_of_a_fine_tune_are_its_own(
    teacher_folder: Path, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both share stores of pictures and captions; what one of them drew the other one did not."""
    fine_tune = Path(shutil.copytree(teacher_folder, tmp_path / "fine-tune"))
    (weights,) = (fine_tune / "transformer").glob("*.safetensors")
    save_file({name: 0.9 * tensor for name, tensor in load_file(weights).items()}, weights)
    shutil.copytree(synthetic, tmp_path / "data" / "drawn.zarr")
    settings: dict[str, Any] = {"method": "reflow", "pairs": "stored", "train_steps": 1, "watch": False}

    own, others = Heard(), Heard()
    runs.run(teacher_folder, None, tmp_path, progress=own, **settings)  # the newest store that it drew
    assert not [said for said in own.said if said.startswith("warning")]
    with pytest.raises(UsageError, match=r"no finished store of .* that the teacher drew"):
        runs.run(fine_tune, None, tmp_path, **settings)
    runs.run(fine_tune, synthetic, tmp_path, progress=others, **settings)
    assert len([said for said in others.said if "drawn by another network" in said]) == 1
    runs.run(fine_tune, None, tmp_path, method="lcm", train_steps=1, watch=False)  # which needs no pairs


def test_pairs_of_fresh_noise_are_none(teacher_folder: Path, synthetic: Path, tmp_path: Path) -> None:
    """Its settings are made to say so: the teacher here is of flow matching, and ddpm is for tables."""
    store = Path(shutil.copytree(synthetic, tmp_path / "ddpm.zarr"))
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["ddx"]["settings"]["synthetic"]["sampler"] = "ddpm"
    (store / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(UsageError, match="drawn by ddpm") as refused:
        runs.run(teacher_folder, store, tmp_path, method="reflow", pairs="stored")
    assert "--synthetic-sampler" in str(refused.value.hint) and "heun" in str(refused.value.hint)


@pytest.mark.parametrize("method", ["reflow", "dmd"])
def test_pairs_are_solved_by_another_sampler(
    method: str, teacher_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    solve = pairs.sampled_end

    def watched(*arguments: Any) -> Any:
        seen.append((*arguments, solve(*arguments)))
        return seen[-1][-1]

    for module in (reflow, dmd):
        monkeypatch.setattr(module, "sampled_end", watched)
    settings: dict[str, Any] = {"method": method, "sampler": "heun", "train_steps": 1}
    student = runs.run(teacher_folder, store, tmp_path, **settings)
    record = json.loads((student / "run.json").read_text())
    assert record["config"]["sampler"] == "heun" and record["skipped_steps"] == 0
    view, name, start, batch, guidance, steps, end = seen[0]
    expected = view.teacher.sample(
        batch.condition,
        batch.null,
        num_steps=steps,
        guidance=guidance,
        noise=start,  # of flow matching it is the noise itself
        sampler=TeacherSampler(name=name),
    )
    assert name == "heun" and torch.equal(end, expected)
    for wrong, words in (({"pairs": "stored"}, "drawn already"), ({"sampler": "ddim"}, "cannot draw")):
        with pytest.raises(UsageError, match=words):
            runs.run(teacher_folder, store, tmp_path / "no", **{**settings, **wrong})


def test_of_the_workspace_s_stores_the_newest_drawn_one_is_taken(
    teacher_folder: Path, store: Path, synthetic: Path, tmp_path: Path
) -> None:
    def run(**settings: Any) -> str:
        found = runs.run(teacher_folder, None, tmp_path, method="reflow", train_steps=1, **settings)
        return Path(json.loads((found / "run.json").read_text())["store"]).name

    (tmp_path / "data").mkdir()
    shutil.copytree(store, tmp_path / "data" / "given.zarr")
    with pytest.raises(UsageError, match="that the teacher drew") as refused:
        run(pairs="stored")
    assert "given.zarr" in str(refused.value) and "--synthetic" in str(refused.value.hint)
    shutil.copytree(synthetic, tmp_path / "data" / "drawn.zarr")
    os.utime(tmp_path / "data" / "drawn.zarr" / "rows.parquet", (1, 1))  # older than the other
    assert run(pairs="stored") == "drawn.zarr"
    assert run(out=str(tmp_path / "usual")) == "given.zarr"


def test_other_methods_do_not_ask_for_the_noise(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    record = json.loads((runs.run(teacher_folder, store, tmp_path, train_steps=1) / "run.json").read_text())
    assert record["synthetic_share"] == 0.0
