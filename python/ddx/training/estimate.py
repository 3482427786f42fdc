"""What `--dry-run` can say about memory and time before anything is loaded."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ddx.methods.base import Method
from ddx.methods.parts.adversarial import DISCRIMINATOR
from ddx.methods.registry import METHODS, trainable_spec
from ddx.teachers.base import Teacher
from ddx.teachers.safetensors_header import header_of
from ddx.training.config import DistillConfig


@dataclass(frozen=True)
class Estimate:
    """Orders of magnitude: parameters of the denoiser, bytes on one device, seconds of the whole run."""

    num_parameters: int
    memory_bytes: int
    seconds: float

    @property
    def duration(self) -> str:
        """The time alone, in words."""
        return f"about {_in_words(self.seconds)} on this machine"

    def __str__(self) -> str:
        return (
            f"about {self.memory_bytes / 2**30:.1f} GiB of memory for a denoiser of {self.num_parameters / 1e6:.1f} M "
            f"parameters, and about {_in_words(self.seconds)} on this machine"
        )


def estimate_run(method: Method, config: DistillConfig, teacher: Teacher, dtype: torch.dtype, world: int) -> Estimate:
    """Return the estimate.

    Memory: per network 16 bytes a parameter (weight, gradient, two moments), 4 for an average and for the gradient of a
    second loss that is balanced, the teacher's own, and about 40 activations of the network's width a token and layer,
    of the student and of every frozen network that its gradient flows through.
    Time: 2 operations a parameter, token and forward
    pass, at the speed of a matrix product measured now.
    """
    num_parameters = count_parameters(teacher.folder / teacher.denoiser_part)
    # heads are small, and so is what low-rank networks add to the backbone that they share with the teacher
    whole = [] if config.lora_rank else [spec for spec in method.networks() if spec.lora]
    num_trained = sum(spec.trained for spec in whole)
    num_copies = len(whole) - num_trained
    if not config.lora_rank:
        num_copies += (config.ema_half_life > 0) + len(config.ema_more) + (config.loss_balance != "none")
    _, height, width = teacher.latent_shape(config.resolution)
    tokens = height * width // int(teacher.denoiser_config.get("patch_size", 1)) ** 2
    rows = min(config.micro_batch_size or config.batch_size, math.ceil(config.batch_size / world))
    size = 4 if method.full_precision else torch.finfo(dtype).bits // 8
    layers, channels = _depth_and_width(teacher)
    # with checkpointing a layer's input for each layer, and all of the two that are being recomputed
    a_pass = rows * tokens * channels * size * layers * (1 if config.gradient_checkpointing else 40)
    activations = int(a_pass * (1.0 + method.frozen_passes()))
    activations += rows * tokens * channels * size * 80 if config.gradient_checkpointing else 0
    per_parameter = 16 * num_trained + 4 * num_copies + torch.finfo(teacher.dtype).bits // 8
    spec = trainable_spec(config.method)
    passes = spec.relative_cost + (1.0 if config.gradient_checkpointing else 0.0)
    if DISCRIMINATOR not in spec.networks and DISCRIMINATOR in {network.name for network in method.networks()}:
        passes += METHODS["ladd"].relative_cost  # one beside the method: LADD is nothing else
    operations = 2.0 * num_parameters * tokens * passes * config.batch_size / world * config.train_steps
    # networks of such sizes reach about a third of a large matrix product's speed
    seconds = 3.0 * operations / _operations_per_second(teacher.device, dtype)
    return Estimate(num_parameters, num_parameters * per_parameter + activations, seconds)


def count_parameters(folder: Path) -> int:
    """Return the number of parameters in the safetensors files of `folder`, from their headers alone."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        header = header_of(path)
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _depth_and_width(teacher: Teacher) -> tuple[int, int]:
    config = teacher.denoiser_config
    if "num_attention_heads" in config and "num_layers" in config:
        return int(config["num_layers"]), int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    widths = config.get("block_out_channels", (320,))
    return 2 * len(widths) * int(config.get("layers_per_block", 2)), int(widths[0])


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


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
