"""TwinFlow (Cheng et al. 2026, arXiv:2512.05150): a flow map that is its own fake score at negative times.

x_f  = z - F(z, 1, 0)                                             what the student draws in one step
x'   = (1 - t') x_f + t' eps'
fake:      | F(x', -t', -t') - (eps' - x_f) |^2                   the velocity of the student's own pictures
rectify:   | F(z, 1, 0) - sg(F(z, 1, 0) + clip(F(x', t', t') - F(x', -t', -t'), ±1)) |^2
map:       RCGM's loss, see :mod:`ddx.methods.rcgm`

The rectification moves x_f along the difference of two scores, the direction of distribution matching, without a third
network. A batch falls into four parts: jumps all the way, which are rectified too; jumps of less than RCGM's small
step; any jumps; fakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, TARGET, Batch, Losses, Turn, bare
from ddx.methods.parts.config import above_zero, at_least, within
from ddx.methods.parts.flow_map import guidance_of, take
from ddx.methods.parts.flow_view import mean_square, rows
from ddx.methods.rcgm import RCGM, RCGMConfig


@dataclass(frozen=True, kw_only=True)
class TwinFlowConfig(RCGMConfig):
    """The published form, with the teacher's velocity in place of the data's."""

    full_share: float = option(0.25, "share of rows that jump from noise to the picture, and are rectified")
    near_share: float = option(0.25, "share of rows that jump less than small_step: they learn the velocity")
    fake_share: float = option(0.25, "share of rows that learn the velocity of the student's own pictures")
    rectify_weight: float = option(0.5, "weight of the rectification, averaged over its rows (published: 0.5 to 0.75)")
    rectify_clip: float = option(1.0, "limit on each element of the rectification")
    latents_from: str = option(
        "data", "pictures to add noise to: the store's, or the student's", choices=("data", "student")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "full_share", "near_share", "fake_share")
        at_least(self, 0.0, "rectify_weight")
        above_zero(self, "rectify_clip")
        if self.full_share + self.near_share + self.fake_share > 1.0:
            raise UsageError(
                f"full_share + near_share + fake_share = {self.full_share + self.near_share + self.fake_share:g} is "
                "more than the batch",
                hint="the rest of the rows jumps anywhere: --fake-share 0.25",
            )
        if self.latents_from == "student" and self.velocity_from == "data":
            raise UsageError(
                "latents_from = student leaves velocity_from = data nothing to learn from",
                hint="--velocity-from teacher",
            )


class TwinFlow(RCGM):
    """TwinFlow."""

    config: TwinFlowConfig
    defaults: ClassVar[Mapping[str, Any]] = {**RCGM.defaults, "batch_size": 128}

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the loss of each row by the part that it falls to, and which rows were dropped."""
        config, student = self.config, networks[STUDENT]
        still, target = bare(student), networks.get(TARGET, bare(student))
        guidance, (times, r) = self.draw_guidance(batch), self.draw_pairs(batch, config)
        noise, fresh, u = self.draw_noise(batch), self.draw_noise(batch), batch.random.uniform()
        full, near, fake, anywhere = batch.random.pick(config.full_share, config.near_share, config.fake_share)
        mapped, noised = torch.cat([full, near, anywhere]), torch.cat([full, fake])

        t = times.t.index_fill(0, full, self.view.t_max)
        r = r.index_fill(0, full, 0.0)
        r[near] = (t - u * config.small_step).clamp(min=0.0)[near]
        start = self.view.start(noise, self.view.t_max)
        own = batch.x0.clone()
        if config.latents_from == "student":
            own = self.one_step(still, start, batch, guidance)
        elif len(noised):
            own[noised] = self.one_step(still, start[noised], take(batch, noised), guidance_of(guidance, noised))
        again = self.noisy(own, fresh, times.t)  # x' at t', which is the drawn time
        x_t = self.noisy(own if config.latents_from == "student" else batch.x0, noise, t)
        x_t[full] = start[full]

        x, at, interval = x_t.clone(), t.clone(), self.interval(t, r).index_fill(0, fake, 0.0)
        x[fake], at[fake] = again[fake], -times.t[fake]
        prediction = self.jump_velocity(student, x, at, interval, batch.condition, guidance)
        wanted, push = fresh - own, torch.zeros_like(x)
        if len(mapped):
            some = (value[mapped] for value in (prediction.detach(), x_t, t, r, noise))
            error = self.error_of(target, take(batch, mapped), guidance_of(guidance, mapped), *some)
            wanted[mapped] = prediction.detach()[mapped] - error
        if len(full):
            push[full] = self.rectification(
                still, again[full], times.t[full], take(batch, full), guidance_of(guidance, full)
            )
        loss, dropped = guarded_consistency_loss(prediction, wanted, c=None)
        second, dropped_second = guarded_consistency_loss(prediction, prediction.detach() + push, c=None)
        # the batch's mean has the few rows that are rectified in it, the weight is of theirs
        weight = config.rectify_weight / config.full_share if config.full_share > 0.0 else 0.0
        return Losses(
            by_network={STUDENT: times.weigh(loss + weight * second)},
            dropped={STUDENT: dropped | dropped_second},
            tracked={"rectification": mean_square(push).index_fill(0, torch.cat([near, fake, anywhere]), torch.nan)},
        )

    @torch.no_grad()
    def one_step(self, network: nn.Module, start: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return what a network draws in one step from `start`."""
        t = torch.full((len(start),), self.view.t_max, dtype=torch.float64, device=start.device)
        return start - rows(t, start) * self.jump_velocity(network, start, t, 1.0, batch.condition, guidance)

    @torch.no_grad()
    def rectification(self, network: nn.Module, x: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return what is to be added to F: the velocity at t less that at -t, each element within ±`rectify_clip`."""
        real = self.jump_velocity(network, x, t, 0.0, batch.condition, guidance)
        fake = self.jump_velocity(network, x, -t, 0.0, batch.condition, guidance)
        return (real - fake).clamp(-self.config.rectify_clip, self.config.rectify_clip)
