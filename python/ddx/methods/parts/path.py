"""Which way the path through a noisy state goes, and how a velocity model changes along it.

    from the teacher   w = v_null + s (v_cond - v_null)                       its guided velocity: distillation
    from the data      w = (eps - x0) + (s - 1) (v_cond - v_null)             training; the teacher guides only

The expectation of ``eps - x0`` at a state is the velocity of the data, so the two agree on average where the teacher is
exact, and at s = 1 the second needs no teacher at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.methods.base import Batch, bare
from ddx.methods.parts.config import FlowConfig, above_zero
from ddx.methods.parts.flow_view import FlowView, rows
from ddx.teachers.condition import Condition
from ddx.teachers.extra_input import moved_inputs

DERIVATIVES = ("dual", "finite")


@dataclass(frozen=True, kw_only=True)
class DerivativeConfig(FlowConfig):
    """What a method has whose loss holds a derivative of its network along the path."""

    jvp: str = option("dual", "derivative along the path: exact, or by central differences", choices=DERIVATIVES)
    jvp_step: float = option(1e-3, "step of central differences, in flow time")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "jvp_step")


def path_velocity(
    view: FlowView, source: str, x: Tensor, t: Tensor, noise: Tensor, batch: Batch, guidance: Tensor | float
) -> Tensor:
    """Return w, as `source` says, at x = (1 - t) x0 + t noise, float32 `[B, C, h, w]`; no gradients are meant."""
    network = view.teacher.network()
    if source == "teacher":
        return view.guided(network, x, t, batch.condition, batch.null, guidance)
    straight = noise - batch.x0
    if isinstance(guidance, int | float) and guidance == 1.0:
        return straight
    both = Condition.cat([batch.null.expand(len(x)), batch.condition])
    uncond, cond = view.velocity(network, torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    return straight + rows(guidance - 1.0, x) * (cond - uncond)


@torch.no_grad()
def velocity_derivative(
    view: FlowView,
    network: nn.Module,
    x: Tensor,
    dx: Tensor,
    t: Tensor,
    dt: Tensor,
    condition: Condition,
    config: DerivativeConfig,
) -> tuple[Tensor, Tensor]:
    """Return the velocity and its derivative along (dx, dt), as `config.jvp` says; no gradients.

    Numbers that are fed with a tangent move along. By differences the velocity is the mean of the two ends, which is as
    far off as the derivative is. Both are of the bare network: a data-parallel wrapper would take the pass for a
    forward pass to be synchronised.
    """
    network = bare(network)
    if config.jvp == "dual":
        return view.velocity_dual(network, x, dx, t, dt, condition)
    ends = []
    for move in (config.jvp_step, -config.jvp_step):
        with moved_inputs(network, x.new_full((), move, dtype=torch.float32)):
            ends.append(view.velocity(network, x + move * dx, t + move * dt, condition))
    return 0.5 * (ends[0] + ends[1]), (ends[0] - ends[1]) / (2.0 * config.jvp_step)
