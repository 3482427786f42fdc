"""What follows the size of the global batch: the learning rate, and a warm-up that is counted in images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container

from ddx.errors import UsageError
from ddx.training.config import DistillConfig


def follow_batch(
    config: DistillConfig, recipe_batch: int, said: Container[str]
) -> tuple[DistillConfig, dict[str, str]]:
    """Return the config with its learning rate and its warm-up for its batch, and why, by setting.

    `recipe_batch`: images a step of the recipe that the learning rate belongs to; `said`: the settings that the user
    gave. The rate is multiplied by the ratio k of the batches ("linear": Goyal et al. 2017, for SGD) or by its root
    ("sqrt": Malladi et al. 2022, for Adam). UsageError where the user gives the value that would follow.
    """
    reasons: dict[str, str] = {}
    if config.lr_scaling != "none":
        if "learning_rate" in said:
            raise UsageError(
                f"lr_scaling = {config.lr_scaling} scales the recipe's learning rate, and learning_rate = "
                f"{config.learning_rate:g} is given",
                hint="leave one of them away",
            )
        ratio = config.batch_size / recipe_batch
        rate = config.learning_rate * (ratio if config.lr_scaling == "linear" else math.sqrt(ratio))
        reasons["learning_rate"] = (
            f"--lr-scaling {config.lr_scaling}: {config.learning_rate:g} is for batches of {recipe_batch}"
        )
        config = dataclasses.replace(config, learning_rate=float(f"{rate:.6g}"))
    if config.warmup_images is not None:
        if "warmup_steps" in said:
            raise UsageError(
                f"warmup_images = {config.warmup_images} and warmup_steps = {config.warmup_steps} say the same",
                hint="leave one of them away",
            )
        steps = math.ceil(config.warmup_images / config.batch_size)
        reasons["warmup_steps"] = f"--warmup-images {config.warmup_images}"
        config = dataclasses.replace(config, warmup_steps=steps)
    return config, reasons
