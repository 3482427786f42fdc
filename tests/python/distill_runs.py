"""Short distillations of a tiny teacher, and comparisons of what they leave."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ddx.checkpoints.folder import load_checkpoint
from ddx.checkpoints.shares import whole
from ddx.config import Settings
from ddx.progress import NullProgress
from ddx.training.distill import distill
from ddx.training.resolve import resolve
from ddx.workspace import Workspace

STEPS = 8
SETTINGS: dict[str, Any] = {
    "train_steps": STEPS,
    "batch_size": 4,
    "micro_batch_size": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "gradient_checkpointing": False,
    "checkpoint_every": 3,
    "log_every": 1,
    "sample_every": 0,
    "device": "cpu",
}


def run(
    teacher: Path,
    store: Path | None,
    workspace: Path,
    *,
    progress: Any = None,
    said: Collection[str] = (),
    **settings: Any,
) -> Path:
    values = {**SETTINGS, "teacher": str(teacher), "data": None if store is None else str(store), **settings}
    config, *of_method = resolve([Settings(values, "the test")])
    progress = progress or NullProgress()
    return distill(config, *of_method, workspace=Workspace(workspace), progress=progress, said=said)


def flags(teacher: Path, store: Path, workspace: Path, **settings: Any) -> list[str]:
    """The same run as a command line."""
    values = {**SETTINGS, "teacher": str(teacher), "data": str(store), **settings}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["distill", *sets, "--workspace", str(workspace), "--quiet"]


def lines(student: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]


def tensors(student: Path, step: int = STEPS) -> dict[str, Any]:
    saved = load_checkpoint(student / "checkpoints" / f"step-{step:06d}").tensors
    return {f"{group}/{name}": whole(value) for group, named in saved.items() for name, value in named.items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Weights, averages, optimiser state and the losses on the way are equal, bit for bit."""
    ours, theirs = tensors(first), tensors(second)
    assert set(ours) == set(theirs)
    assert len({name.split("/")[0] for name in ours}) == 4  # student, its optimiser, the target, the exported average
    different = [name for name in ours if not ours[name].equal(theirs[name])]
    assert different == []
    assert [line["loss"] for line in lines(first)] == [line["loss"] for line in lines(second)]
