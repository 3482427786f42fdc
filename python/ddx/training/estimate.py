"""What `--dry-run` can say about time before anything is loaded."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from ddx.methods.base import Method
from ddx.methods.parts.adversarial import DISCRIMINATOR
from ddx.methods.registry import METHODS, trainable_spec
from ddx.teachers.base import Teacher
from ddx.teachers.safetensors_header import header_of
from ddx.training.config import DistillConfig


def estimate_seconds(method: Method, config: DistillConfig, teacher: Teacher, dtype: torch.dtype, world: int) -> float:
    """Return the seconds of the whole run, an order of magnitude.

    Two operations a parameter, token and forward pass, at the speed of a matrix product measured now.
    """
    num_parameters = count_parameters(teacher.folder / teacher.denoiser_part)
    _, height, width = teacher.latent_shape(config.resolution)
    tokens = height * width // int(teacher.denoiser_config.get("patch_size", 1)) ** 2
    spec = trainable_spec(config.method)
    passes = spec.relative_cost + (1.0 if config.gradient_checkpointing else 0.0)
    if DISCRIMINATOR not in spec.networks and DISCRIMINATOR in {network.name for network in method.networks()}:
        passes += METHODS["ladd"].relative_cost  # one beside the method: LADD is nothing else
    operations = 2.0 * num_parameters * tokens * passes * config.batch_size / world * config.train_steps
    # networks of such sizes reach about a third of a large matrix product's speed
    return 3.0 * operations / _operations_per_second(teacher.device, dtype)


def count_parameters(folder: Path) -> int:
    """Return the number of parameters in the safetensors files of `folder`, from their headers alone."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        header = header_of(path)
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    size = 4096 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=dtype)
    for repeats in (1, 4):
        start = time.perf_counter()
        for _ in range(repeats):
            b = a @ a
        b[0, 0].item()
        elapsed = (time.perf_counter() - start) / repeats
    return 2.0 * size**3 / max(elapsed, 1e-9)


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
