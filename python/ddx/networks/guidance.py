"""Guidance as an input of a student: an embedding added to its time embedding, and folded away for export.

The embedder's last layer starts at zero, so the student starts as the teacher exactly; its first one does not, or
else only the last bias would ever move. For one fixed guidance scale the embedding is a constant, and adding it to
the bias of the layer that it enters at gives a network of the teacher's own class (equal to about 3e-7 in float32).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddx.teachers.base import Teacher

NAME = "guidance_embedder"


class GuidanceEmbedder(nn.Module):
    """Fourier features of the guidance scale, then two linears; the output is 0 until the last one is trained."""

    frequencies: Tensor

    def __init__(self, width: int, *, num_features: int = 64, highest: float = 2.0, lowest: float = 0.002) -> None:
        """Take the width of the time embedding; frequencies, in radians a unit of guidance, fall to the lowest."""
        super().__init__()
        steps = torch.linspace(math.log(highest), math.log(lowest), num_features // 2)
        self.register_buffer("frequencies", steps.exp(), persistent=False)
        self.hidden = nn.Linear(num_features, width)
        self.last = nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.scale: Tensor | None = None  # guidance [B] of the forward pass under way, see `guidance_input`

    def forward(self, guidance: Tensor) -> Tensor:
        """Return embeddings `[B, width]` in the layers' dtype for guidance scales `[B]`."""
        angles = guidance.float().reshape(-1, 1) * self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.hidden.weight.dtype)
        embedding: Tensor = self.last(nn.functional.silu(self.hidden(features)))
        return embedding


def add_guidance_embedder(teacher: Teacher, network: nn.Module) -> nn.Module:
    """Let `network`, a student of the teacher's class, take guidance (in place); returns it."""
    linear = teacher.time_embedding_linear(network)
    embedder = GuidanceEmbedder(linear.out_features).to(linear.weight.device, linear.weight.dtype)
    network.add_module(NAME, embedder)

    def add_embedding(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if embedder.scale is None:
            raise RuntimeError("this network takes guidance: call it inside guidance_input(network, scale)")
        embedding: Tensor = embedder(embedder.scale)
        return output + embedding.to(output.dtype)

    linear.register_forward_hook(add_embedding)
    return network


@contextmanager
def guidance_input(network: nn.Module, guidance: Tensor | float) -> Iterator[None]:
    """Feed guidance, a number or `[B]`, to the forward passes inside; a network without the embedder ignores it."""
    embedder = getattr(getattr(network, "module", network), NAME, None)
    if embedder is None:
        yield
        return
    previous = embedder.scale
    device = embedder.last.weight.device
    embedder.scale = torch.as_tensor(guidance, dtype=torch.float32).to(device).reshape(-1)
    try:
        yield
    finally:
        embedder.scale = previous


@torch.no_grad()
def fold_guidance(teacher: Teacher, network: nn.Module, guidance: float) -> nn.Module:
    """Return a network of the teacher's class that equals `network` at this guidance. `network` is left as it is.

    A network without the embedder is returned itself.
    """
    embedder = getattr(network, NAME, None)
    if embedder is None:
        return network
    plain = teacher.new_student_network(next(network.parameters()).dtype)
    state = {name: value for name, value in network.state_dict().items() if not name.startswith(NAME + ".")}
    plain.load_state_dict(state)
    embedding = embedder(torch.tensor([guidance], device=embedder.last.weight.device))[0]
    teacher.time_embedding_linear(plain).bias.add_(embedding)
    return plain
