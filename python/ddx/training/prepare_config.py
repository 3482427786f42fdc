"""The settings of `ddx prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import option
from ddx.methods.parts.config import changed
from ddx.methods.parts.preparation_config import PreparationConfig
from ddx.training.config import DistillConfig


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Tune a teacher for continuous-time distillation. The defaults suit SANA-600M on one GPU."""

    teacher: str = changed(DistillConfig, "teacher", "sana-600m")
    data: Path | None = changed(DistillConfig, "data", None)
    out: Path | None = option(
        None, "folder of the prepared teacher (none: <workspace>/teachers/<teacher>-prepared)", metavar="PATH"
    )
    preset: str = changed(DistillConfig, "preset", "auto")
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
