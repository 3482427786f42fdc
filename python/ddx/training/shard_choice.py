"""`--shard`: whether a run spreads its networks over the ranks, and what does not go with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ddx.errors import UsageError
from ddx.methods.base import Method
from ddx.teachers.base import Teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.estimate import count_parameters

MOMENTS = {"adamw": 8.0, "radam": 8.0, "adamw8bit": 2.0, "came": 4.0}  # bytes a weight
SHARE_OF_DEVICE = 0.5  # of its memory, that whole states may take: activations need the rest


@dataclass(frozen=True)
class ShardChoice:
    """How a run spreads its networks: "none", "full" or "hybrid", and why so."""

    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


def choose_sharding(
    config: DistillConfig, method: Method, discriminator: Any, teacher: Teacher, ranks: Ranks
) -> ShardChoice:
    """Return what the setting `shard` comes to; UsageError for settings that do not go with the one that was named.

    auto: none while weights, gradients, moments and averages take at most half of a GPU's memory; of several machines
    hybrid while shares of one do; full otherwise.
    """
    if config.shard == "none":
        return ShardChoice("none", "as told")
    if ranks.world == 1:
        return ShardChoice("none", "one process holds everything")
    conflicts = list(_conflicts(config, method.config, discriminator))
    if config.shard != "auto":
        for setting, cure, why in conflicts:
            raise UsageError(
                f"shard = {config.shard} does not go with {setting}: {why}", hint=f"{cure}, or --shard none"
            )
        return ShardChoice(config.shard, f"networks are spread over {ranks.world} processes")
    if ranks.device.type != "cuda":
        return ShardChoice("none", "the run is not on GPUs")
    needed = state_bytes(config, method, teacher)
    memory = torch.cuda.get_device_properties(ranks.device).total_memory
    sizes = f"states take {needed / 2**30:.0f} GiB of {memory / 2**30:.0f}"
    kind = fitting(needed, memory, ranks.world, int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world)))
    if kind == "none":
        return ShardChoice("none", sizes)
    if conflicts:
        return ShardChoice("none", f"{sizes}, but {conflicts[0][0]} does not go with shares: {conflicts[0][2]}")
    return ShardChoice(kind, f"{sizes}; networks are spread over {ranks.world} processes")


def fitting(needed: float, memory: float, num_ranks: int, on_machine: int) -> str:
    """Return the kind of sharding with which states of `needed` bytes fit GPUs of `memory` bytes, and that sends least.

    on_machine: how many of the ranks a machine has.
    """
    allowed = SHARE_OF_DEVICE * memory
    if needed <= allowed:
        return "none"
    several = on_machine < num_ranks and num_ranks % on_machine == 0
    return "hybrid" if several and needed / on_machine <= allowed else "full"


def state_bytes(config: DistillConfig, method: Method, teacher: Teacher) -> float:
    """Return the bytes of weights, gradients, moments and averages of a run that does not shard, by counting weights.

    What a method adds to copies of the teacher, and low-rank matrices, are small and not counted.
    """
    num_parameters = count_parameters(teacher.folder / teacher.denoiser_part)
    each = 2.0 if teacher.dtype in (torch.float16, torch.bfloat16) else 4.0
    if not config.lora_rank:
        copies = [spec for spec in method.networks() if spec.lora]
        each += sum(8.0 + MOMENTS[config.optimizer] if spec.trained else 4.0 for spec in copies)
        averages = len(config.ema_more) + (config.ema_half_life > 0.0)
        each += averages * (2.0 if config.average_dtype == "bf16" else 4.0)
    return num_parameters * each


def _conflicts(config: DistillConfig, *others: Any) -> Iterator[tuple[str, str, str]]:
    """Yield each setting that does not go with shares, its cure, and why."""
    if config.base_bits is not None:
        yield f"base_bits = {config.base_bits}", "leave --base-bits away", "weights in fewer bits are not spread"
    for name in config.offload:
        if name != "activations":
            yield f"offload = {name}", f"leave --offload {name} away", "shares stay on their devices"
    if config.optimizer == "adamw8bit":
        yield "optimizer = adamw8bit", "--optimizer adamw", "its moments are of blocks of whole weights"
    if config.dtype == "fp16":
        yield "dtype = fp16", "--dtype bf16", "the scale of its losses was not tried with shares"
    for settings in others:
        if getattr(settings, "r1_form", None) == "exact" and settings.r1_weight > 0.0:
            yield "r1_form = exact", "--r1-form finite", "a second derivative finds no gathered weights"
