"""Guidance, and the length of a step, as inputs of a student; see :mod:`ddx.teachers.extra_input`.

guidance  the scale s of ``uncond + s (cond - uncond)``
interval  how far the student jumps, ``t - r`` in positions of the sampler (1 is all the way from noise to picture); its
          embedding is multiplied by it, so at r = t the student is a velocity model of one time exactly
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.networks.lora import is_lora, plain_state
from ddx.teachers.base import Teacher
from ddx.teachers.extra_input import GUIDANCE, ScalarEmbedder, add_embedder, find_embedder, find_number, scalar_input

INTERVAL = "interval_embedder"
EMBEDDERS = (GUIDANCE, INTERVAL)


def guidance_embedder(width: int) -> ScalarEmbedder:
    """Return an embedder for guidance scales."""
    return ScalarEmbedder(width)


def interval_embedder(width: int) -> ScalarEmbedder:
    """Return an embedder for intervals in [0, 1]."""
    return ScalarEmbedder(width, highest=30.0, lowest=0.1, vanishes_at_zero=True)


def add_guidance_embedder(teacher: Teacher, network: nn.Module) -> nn.Module:
    """Let `network`, a student of the teacher's class, take guidance (in place); returns it.

    Raises UsageError of a teacher in whose students no number can be folded.
    """
    check_folds(teacher, GUIDANCE)
    return _add(teacher, network, GUIDANCE)


def add_interval_embedder(teacher: Teacher, network: nn.Module, *, folded: bool = True) -> nn.Module:
    """Let `network`, a student of the teacher's class, take the length of its step (in place); returns it.

    Raises UsageError as for guidance, but not for a network that is never exported: `folded` is false.
    """
    if folded:
        check_folds(teacher, INTERVAL)
    return _add(teacher, network, INTERVAL)


def check_folds(teacher: Teacher, name: str) -> None:
    """Raise UsageError if the number of the embedder `name` cannot be folded into a student of the teacher."""
    if teacher.folds_numbers:
        return
    why = f"the time embedding of {teacher.name} has no bias that a further number could be folded into"
    if name == GUIDANCE:
        scale = f"{teacher.default_guidance:g}"
        raise UsageError(
            f"{why}: its students have one guidance scale",
            hint=f"give one scale: --guidance-min {scale} --guidance-max {scale}",
        )
    raise UsageError(
        f"{why}: its students cannot be told the length of their step",
        hint="a method without intervals: --method dmd2, sid, sana-sprint, scm or lcm",
    )


def guidance_input(network: nn.Module, guidance: Tensor | float) -> AbstractContextManager[None]:
    """Feed guidance, a number or `[B]`, to the forward passes inside; a network without the embedder ignores it."""
    return scalar_input(network, GUIDANCE, guidance)


def interval_input(
    network: nn.Module, interval: Tensor | float, tangent: Tensor | float | None = None
) -> AbstractContextManager[None]:
    """Feed intervals, a number or `[B]`, to the forward passes inside; `tangent` is for dual forwards."""
    return scalar_input(network, INTERVAL, interval, tangent)


def fold_guidance(teacher: Teacher, network: nn.Module, guidance: float) -> nn.Module:
    """Return a network of the teacher's class that equals `network` at this guidance. `network` is left as it is."""
    return fold(teacher, network, {GUIDANCE: guidance})


@torch.no_grad()
def fold(teacher: Teacher, network: nn.Module, numbers: Mapping[str, float]) -> nn.Module:
    """Return a network of the teacher's class that equals `network` when its embedders are fed `numbers`, by name.

    Low-rank additions are merged, into the full weights where the network stores its own in fewer bits. A network that
    has neither is returned itself; `network` is left as it is.
    """
    found = {name: find_embedder(network, name) for name in EMBEDDERS}
    embedders = {name: embedder for name, embedder in found.items() if embedder is not None}
    if not embedders and not is_lora(network):
        return network
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    home = teacher.home
    if is_lora(network):  # a device that holds it in low rank may have no room for whole weights
        teacher.home = torch.device("cpu")
    try:
        plain = teacher.new_student_network(torch.promote_types(dtype, torch.float32))
    finally:
        teacher.home = home
    state = plain_state(network, plain.state_dict())
    plain.load_state_dict({name: value for name, value in state.items() if not name.startswith(EMBEDDERS)})
    bias = teacher.time_embedding_linear(plain).bias
    for name, embedder in embedders.items():
        bias.add_(embedder(torch.tensor([numbers[name]], device=embedder.last.weight.device))[0].to(bias.device))
    return plain


def _add(teacher: Teacher, network: nn.Module, name: str) -> nn.Module:
    if find_number(network, name) is not None:  # one that takes it itself
        return network
    linear = teacher.time_embedding_linear(network)
    make = {GUIDANCE: guidance_embedder, INTERVAL: interval_embedder}[name]
    # float32 whatever the network is in: behind a frozen backbone in bfloat16 it is still trained
    dtype = torch.promote_types(linear.weight.dtype, torch.float32)
    embedder = make(linear.out_features).to(linear.weight.device, dtype)
    add_embedder(network, linear, name, embedder)
    return network
