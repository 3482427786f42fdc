"""Frozen weights that live in the host's memory and visit the device a block at a time, while the block computes.

The copies on the device are what autograd sees, so it keeps them for a backward pass that needs them and no longer: a
block that is computed again in the backward pass has its weights on the device for that time alone. Nothing is rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddx.teachers.base import Teacher
from ddx.teachers.blocks import blocks_of
from ddx.training.host_memory import empty_at_home


def cannot_stream(lora_rank: int, method_config: Any, num_ranks: int) -> str | None:
    """Return why a low-rank run cannot have its frozen weights on the host, None where it can."""
    # A dual forward reads a block's weights beside its forward pass, when they are not on the device.
    if lora_rank and getattr(method_config, "jvp", None) == "dual":
        return "its method differentiates the low-rank student forwards"
    if lora_rank and num_ranks > 1:
        return "data parallelism wants all weights of a low-rank student on one device"
    return None


def stream_teacher(teacher: Teacher) -> None:
    """Open the teacher's denoiser with the weights of its blocks in the host's memory.

    Networks that share its weights, those of low-rank runs, must be made of it afterwards: then theirs visit too.
    """
    device, home = teacher.device, teacher.home
    teacher.home = torch.device("cpu")
    try:
        network = teacher.network()
    finally:
        teacher.home = home
    blocks = blocks_of(network)
    at_home = {id(value) for block in blocks for value in block.parameters()}
    for value in (*network.parameters(), *network.buffers()):
        if id(value) in at_home:
            value.data = empty_at_home(value, device=device).copy_(value)
        else:
            value.data = value.data.to(device)
    teacher.fast(network)  # chosen by the device of its first weights
    block: Any
    for block in blocks:
        block.forward = _Streamed(block, device)


class _Streamed:
    """The forward pass of a block, with its weights on the device; a copy of the block has a copy of this."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.inner, self.device = block.forward, device
        self.places = [(module, name) for module in block.modules() for name in module._parameters]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block computes."""
        weights = [(module._parameters, name, module._parameters[name]) for module, name in self.places]
        try:
            for table, name, weight in weights:
                if weight is not None:
                    table[name] = self._visitor(weight)  # type: ignore[assignment]  # not to be found as a parameter
            return self.inner(*args, **kwargs)
        finally:
            for table, name, weight in weights:
                table[name] = weight

    def _visitor(self, weight: Tensor) -> Tensor:
        value = weight.detach()
        return torch.empty_like(value, device=self.device, pin_memory=False).copy_(value, non_blocking=True)
