"""A low-rank run whose frozen base is in 8 or 4 bits: it trains, goes on where it stopped, and leaves full weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distill_runs as runs
from ddx.errors import UsageError
from ddx.networks.lora_header import DIFFUSERS_FILE
from ddx.networks.quantised import Quantised
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.quantised_base import quantise_teacher

LOW = {"lora_rank": 4, "base_bits": 8, "train_steps": 4, "checkpoint_every": 2, "learning_rate": 0.03}


def test_a_run_goes_on_and_is_written_around_the_full_weights(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    student = runs.run(teacher_folder, store, tmp_path, out=whole, **LOW)
    half = {**LOW, "keep_checkpoints": 9}
    runs.run(teacher_folder, store, tmp_path, out=stopped, **half)
    # as a run that was killed after its second step
    record = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps({**record, "finished": False}))
    for file in (stopped / "checkpoints" / "step-000004").iterdir():
        file.unlink()
    (stopped / "checkpoints" / "step-000004").rmdir()
    runs.run(teacher_folder, store, tmp_path, out=stopped, **half)
    ours, theirs = runs.tensors(whole, 4), runs.tensors(stopped, 4)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any("packed" in name or "scales" in name for name in ours)  # the base is not in a checkpoint
    weights = load_file(student / "transformer" / "diffusion_pytorch_model.safetensors")
    full = {name: value.float() for name, value in load_teacher(teacher_folder).network().state_dict().items()}
    lora = load_file(student / DIFFUSERS_FILE)
    assert weights.keys() == full.keys()
    trained = {name.removeprefix("transformer.").removesuffix(".lora_A.weight") for name in lora if "lora_A" in name}
    for name, value in weights.items():
        layer = name.removesuffix(".weight")
        if layer in trained and name.endswith(".weight"):
            up, down = (lora[f"transformer.{layer}.lora_{part}.weight"].flatten(1) for part in "BA")
            assert torch.allclose(value, full[name] + (up @ down).reshape(value.shape), atol=1e-5), name
        elif not name.startswith("time_embed"):
            assert torch.equal(value, full[name]), name
    assert any(up.abs().max() > 0 for name, up in lora.items() if "lora_B" in name)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_network_is_within_the_error_of_its_weights(teacher_folder: Path, bits: int) -> None:
    """A prediction, and the gradient that comes back through a frozen teacher."""
    if bits == 4:
        pytest.importorskip("bitsandbytes")
    plain, packed = (load_teacher(teacher_folder, dtype="float32") for _ in range(2))
    quantise_teacher(packed, bits)
    layers = [module for module in packed.network().modules() if isinstance(module, Quantised)]
    assert layers
    text = plain.encode_text(["a red circle"])[0]
    x = torch.randn(1, *plain.latent_shape(), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.5], dtype=torch.float64)
    found = []
    for teacher in (plain, packed):
        value = x.clone().requires_grad_()
        y = teacher.predict(teacher.network(), value, t, text)
        (gradient,) = torch.autograd.grad(y.square().sum(), value)
        found.append((y.detach(), gradient))
    for exact, rounded in zip(*found, strict=True):
        error = float((rounded - exact).norm() / exact.norm())
        assert 0.0 < error < {8: 0.02, 4: 0.25}[bits]


def test_a_student_that_is_differentiated_forwards_trains_too(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    student = runs.run(teacher_folder, store, tmp_path, method="scm", **{**LOW, "train_steps": 2})
    assert all(math.isfinite(line["loss"]) for line in runs.lines(student))


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match="lora_rank = 0"):
        DistillConfig(base_bits=8)
    with pytest.raises(UsageError, match="must be 8 or 4"):
        DistillConfig(base_bits=3, lora_rank=4)
