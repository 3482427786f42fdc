from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import distill_runs as runs
from ddx.errors import DdxError
from ddx.sampling.card import card_text
from ddx.sampling.student import StudentFolder
from ddx.training.divergence import LostSteps
from hears import Heard


def test_a_run_that_diverges_stops_and_keeps_the_checkpoint_before(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    explodes = {"learning_rate": 1e25, "warmup_steps": 0, "max_lost_steps": 3, "out": str(out), "log_every": 100}
    with pytest.raises(DdxError, match="diverged: its last 3 updates, up to step 4") as error:
        runs.run(teacher_folder, store, tmp_path, checkpoint_every=1, keep_checkpoints=1, **explodes)
    assert error.value.exit_code == 1 and error.value.hint
    assert os.listdir(out / "checkpoints") == ["step-000001"]  # the steps after it changed nothing
    assert "goes on from step-000001" in error.value.hint and "learning_rate=2.5e+24" in error.value.hint
    held = runs.tensors(out, 1)
    assert all(bool(value.isfinite().all()) for name, value in held.items() if name.startswith("student/"))
    assert not json.loads((out / "run.json").read_text())["finished"] and not (out / "model_index.json").exists()


def test_steps_that_were_skipped_are_in_the_warning_and_on_the_card(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    heard = Heard()
    settings = {"learning_rate": 1e25, "warmup_steps": 0, "train_steps": 4, "max_lost_steps": 20}
    student = runs.run(teacher_folder, store, tmp_path / "some", progress=heard, **settings)
    skipped = json.loads((student / "run.json").read_text())["skipped_steps"]
    assert skipped > 0
    assert [line for line in heard.said if line.startswith(f"warning: {skipped} updates in 4 steps were skipped")]
    assert f"| skipped steps | {skipped} of 4" in card_text(StudentFolder(student))


def test_lost_steps_are_those_without_a_row_or_a_gradient_that_is_finite() -> None:
    lost, fine, broken = LostSteps(torch.device("cpu")), torch.zeros(()), torch.ones(())
    all_rows, one_row = torch.ones(2, dtype=torch.bool), torch.tensor([True, False])
    counts = []
    for dropped, gradient in (
        ((all_rows, all_rows), fine),  # overflow in the loss alone: the gradient is zero
        ((one_row, one_row), broken),
        ((None,), broken),
        ((all_rows, one_row), fine),
        ((all_rows,), fine),
        ((None,), fine),
    ):
        for rows in dropped:
            lost.add(rows)
        lost.end_step(gradient)
        counts.append(int(lost.in_a_row))
    assert counts == [1, 2, 3, 0, 1, 0]
