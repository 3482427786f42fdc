"""A look or a grid that fails on every rank alike is a warning, and the training goes on as if there had been none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distill_runs as runs
import failing_looks
from torchrun import torchrun

WATCH = {"watch_every": 1, "watch_cost": 1e9, "watch_prompts": 1, "watch_seeds": 2, "reference_steps": 2}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def test_drawings_that_fail_on_every_rank_leave_the_run_as_it_was(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    """The teacher fails at the first look, the student at the look and in the grid of step 2."""
    common = {"train_steps": 3, "micro_batch_size": 1, "warmup_steps": 0, "checkpoint_every": 0, "shard": "full"}
    watched = runs.flags(teacher_folder, store, tmp_path / "watched", **common, **WATCH, sample_every=1)
    watched.remove("--quiet")
    plain = runs.flags(teacher_folder, store, tmp_path / "plain", **common, watch=False)
    done = torchrun(2, failing_looks.__file__, "all", "[3, 8, 10]", json.dumps(watched), json.dumps(plain))
    student, other = (next((tmp_path / name / "students").iterdir()) for name in ("watched", "plain"))
    seen = [json.loads(line)["step"] for line in (student / "watch.jsonl").read_text().splitlines()]
    assert seen == [1, 3]
    for step in (0, 2):
        assert f"the look at step {step} failed: OutOfMemoryError: no room for a drawing" in done
    assert "the grid at step 2 failed: OutOfMemoryError: no room for a drawing" in done
    assert done.count("training goes on") == 3
    assert sorted(path.stem for path in (student / "grids").iterdir()) == [f"step-00000{step}" for step in (0, 1, 3)]
    losses, others = ([line["loss"] for line in runs.lines(folder) if "loss" in line] for folder in (student, other))
    assert losses == others
    ours, theirs = load_file(student / WEIGHTS), load_file(other / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.cluster
@pytest.mark.slow  # as long as the other one, of a case that is rare
def test_a_rank_that_fails_alone_ends_the_run_at_once(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    line = runs.flags(teacher_folder, store, tmp_path, train_steps=3, micro_batch_size=1, shard="full", **WATCH)
    with pytest.raises(AssertionError, match="error: out of memory"):
        torchrun(2, failing_looks.__file__, "1", "[3]", json.dumps(line))
