"""What `ddx prepare` does: a distillation whose student is a teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ddx.config import field_types, option
from ddx.methods.config import changed
from ddx.methods.preparation import PreparationConfig
from ddx.progress import Progress
from ddx.training.config import DistillConfig
from ddx.training.distill import distill, plan
from ddx.training.estimate import Estimate
from ddx.workspace import Workspace

NUM_STEPS = 20  # of the pictures in a grid, beside the teacher's as it was


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Tune a teacher for continuous-time distillation. The defaults suit SANA-600M on one GPU."""

    teacher: str = changed(DistillConfig, "teacher", "sana-600m")
    data: Path | None = changed(DistillConfig, "data", None)
    out: Path | None = option(
        None, "folder of the prepared teacher (none: <workspace>/teachers/<teacher>-prepared)", metavar="PATH"
    )
    qk_norm: bool = changed(PreparationConfig, "qk_norm", True)
    dense_time: bool = changed(PreparationConfig, "dense_time", True)
    null_share: float = changed(PreparationConfig, "null_share", 0.1)
    resolution: int | None = changed(DistillConfig, "resolution", None)
    train_steps: int = option(5000, "optimiser steps")
    batch_size: int = changed(DistillConfig, "batch_size", 64)
    micro_batch_size: int | None = changed(DistillConfig, "micro_batch_size", 8)
    learning_rate: float = changed(DistillConfig, "learning_rate", 1e-4)
    lr_schedule: str = changed(DistillConfig, "lr_schedule", "cosine")
    warmup_steps: int = changed(DistillConfig, "warmup_steps", 200)
    optimizer: str = changed(DistillConfig, "optimizer", "adamw")
    ema_half_life: float = changed(DistillConfig, "ema_half_life", 2_000.0)
    dtype: str = changed(DistillConfig, "dtype", "auto")
    device: str = changed(DistillConfig, "device", "auto")
    gradient_checkpointing: bool = changed(DistillConfig, "gradient_checkpointing", True)
    checkpoint_every: int = changed(DistillConfig, "checkpoint_every", 500)
    sample_every: int = changed(DistillConfig, "sample_every", 500)
    seed: int = changed(DistillConfig, "seed", 0)


def prepare(config: PrepareConfig, *, workspace: Workspace | None = None, progress: Progress | None = None) -> Path:
    """Prepare a teacher and return its folder, which is a --teacher; the same call goes on with an unfinished one.

    Raises what :func:`ddx.training.distill.distill` raises.
    """
    workspace = workspace or Workspace()
    return distill(*_as_distillation(config, workspace), workspace=workspace, progress=progress)


def plan_preparation(config: PrepareConfig, *, workspace: Workspace | None = None) -> tuple[Path, Path, Estimate]:
    """Return the folder, the store and the cost that `prepare` would have, without writing anything."""
    workspace = workspace or Workspace()
    folder, store, estimate = plan(*_as_distillation(config, workspace), workspace=workspace)
    return folder.path, store, estimate


def _as_distillation(config: PrepareConfig, workspace: Workspace) -> tuple[DistillConfig, PreparationConfig]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own = {name: values.pop(name) for name in ("qk_norm", "dense_time", "null_share")}
    values["out"] = config.out or workspace.teacher_path(config.teacher, "prepared")
    assert values.keys() <= field_types(DistillConfig).keys()
    run = DistillConfig(method="preparation", preset="none", sample_steps=(NUM_STEPS,), **values)
    return run, PreparationConfig(**own)
