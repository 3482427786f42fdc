"""TwinFlow (Cheng et al. 2026, arXiv:2512.05150): a flow map that is its own fake score at negative times.

x_f  = z - F(z, 1, 0)                                             what the student draws in one step
x'   = (1 - t') x_f + t' eps'
fake:      | F(x', -t', -t') - (eps' - x_f) |^2                   the velocity of the student's own pictures
rectify:   | F(z, 1, 0) - sg(F(z, 1, 0) + clip(F(x', t', t') - F(x', -t', -t'), ±1)) |^2
map:       RCGM's loss, see :mod:`ddx.methods.rcgm`

The rectification moves x_f along the difference of two scores, the direction of distribution matching, without a third
network. A batch falls into four parts: jumps all the way, which are rectified too; short jumps; any jumps; fakes.

Every mean square m of a row becomes m / (c sqrt(m / (c^2 + 1e-8) + 1)), the root a constant (Barron 2019, alpha = 1),
times tan((1 - |t| + |r|) pi / 2.5) + 1 where it is not of a fake or of the rectification.

The defaults are the authors' (inclusionAI/TwinFlow at a109a71, src/methodes/twinflow/twinflow.py and src/configs/
openuni_task/openuni_full.yaml), with the teacher's guided velocity in place of the data's, which is what is distilled.
In two steps the student jumps to the picture from t = 0.999, and with fresh noise again from 0.7. So it is told where a
jump ends, 0 in every step, and one folder serves all numbers of steps. Told how long a jump is, as the other flow maps
are, it draws along its path, in a folder for each number of equal jumps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.errors import UsageError
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import STUDENT, TARGET, Batch, Losses, Turn, bare
from ddx.methods.parts.config import above_zero, at_least, changed, within
from ddx.methods.parts.flow_map import PairsConfig, guidance_of, take
from ddx.methods.parts.flow_view import mean_square, rows
from ddx.methods.rcgm import RCGM, RCGMConfig
from ddx.networks.guidance import INTERVAL
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition

LOSSES = ("barron", "l2")


@dataclass(frozen=True, kw_only=True)
class TwinFlowConfig(RCGMConfig):
    """The published form, with the teacher's velocity in place of the data's."""

    full_share: float = option(0.25, "share of rows that jump from noise to the picture, and are rectified")
    near_share: float = option(0.25, "share of rows with short jumps: they learn the velocity")
    near_span: float | None = option(0.05, "longest of the short jumps, as a share of t (none: small_step, of any t)")
    same_time_share: float = changed(PairsConfig, "same_time_share", 0.0)
    null_from: str = changed(RCGMConfig, "null_from", "own")
    loss: str = option("barron", "distance of a row: Barron's robust one of its mean square, or that", choices=LOSSES)
    barron_c: float = option(1e-3, "c of Barron's distance, where it turns from square to linear")
    jump_weight: str = option(
        "tan", "weight of a jump, the larger the shorter it is; none: the same", choices=("tan", "none")
    )
    drawing: str = option(
        "fresh",
        "how the student draws; fresh: each step jumps to the picture, and fresh noise leads to the next; path: equal "
        "jumps along its path",
        choices=("fresh", "path"),
    )
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
        above_zero(self, "rectify_clip", "barron_c", "near_span")
        within(self, 0.0, 1.0, "near_span")
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
    defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "adam_beta2": 0.95,
        "batch_size": 128,
    }

    def __init__(self, config: TwinFlowConfig, teacher: Teacher) -> None:
        if config.drawing == "fresh":
            self.sampler, self.folded_steps = "consistency", ()
        super().__init__(config, teacher)

    def usual_times(self) -> tuple[float, ...]:
        """Return the published two times."""
        return (0.999, 0.7) if self.config.drawing == "fresh" else ()

    def interval(self, t: Tensor, r: Tensor) -> Tensor:
        """Return what a jump is told: with fresh noise its end on the sampler's clock, negative for r < 0."""
        if self.config.drawing == "path":
            return super().interval(t, r)
        return torch.where(r < 0.0, -1.0, 1.0) * self.view.position(r.abs())

    def step_velocity(
        self, student: nn.Module, x: Tensor, t: Tensor, condition: Condition, guidance: Tensor | float, num_steps: int
    ) -> Tensor:
        """See :meth:`FlowMap.step_velocity`; with fresh noise every step goes to the picture."""
        if self.config.drawing == "path":
            return super().step_velocity(student, x, t, condition, guidance, num_steps)
        return self.jump_velocity(student, x, t, 0.0, condition, guidance)

    def folded_numbers(self, num_steps: int) -> Mapping[str, float]:
        """See :meth:`FlowMap.folded_numbers`."""
        numbers = super().folded_numbers(num_steps)
        return numbers if self.config.drawing == "path" else {**numbers, INTERVAL: 0.0}

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
        span = config.small_step if config.near_span is None else config.near_span * t
        r[near] = (t - u * span).clamp(min=0.0)[near]
        start = self.view.start(noise, self.view.t_max)
        own = batch.x0.clone()
        if config.latents_from == "student":
            own = self.one_step(still, start, batch, guidance)
        elif len(part := self.rows_to_pass(noised)):
            drawn = self.one_step(still, start[part], take(batch, part), guidance_of(guidance, part))
            own[noised] = drawn[: len(noised)]
        again = self.noisy(own, fresh, times.t)  # x' at t', which is the drawn time
        x_t = self.noisy(own if config.latents_from == "student" else batch.x0, noise, t)
        x_t[full] = start[full]

        x, at, to = x_t.clone(), t.clone(), r.clone()
        x[fake] = again[fake]
        at[fake] = to[fake] = -times.t[fake]
        prediction = self.average_velocity(student, x, at, to, batch.condition, guidance)
        wanted, push = fresh - own, torch.zeros_like(x)
        if len(part := self.rows_to_pass(mapped)):
            some = (value[part] for value in (prediction.detach(), x_t, t, r, noise))
            error = self.error_of(target, take(batch, part), guidance_of(guidance, part), *some)
            wanted[mapped] = prediction.detach()[mapped] - error[: len(mapped)]
        if len(part := self.rows_to_pass(full)):
            pushed = self.rectification(
                still, again[part], times.t[part], take(batch, part), guidance_of(guidance, part)
            )
            push[full] = pushed[: len(full)]
        loss, dropped = self.distance(prediction, wanted)
        second, dropped_second = self.distance(prediction, prediction.detach() + push)
        if config.jump_weight == "tan":
            loss = loss * (torch.tan((1.0 - t + r) * (math.pi / 2.5)) + 1.0).index_fill(0, fake, 1.0).to(loss)
        # the batch's mean has the few rows that are rectified in it, the weight is of theirs
        weight = config.rectify_weight / config.full_share if config.full_share > 0.0 else 0.0
        return Losses(
            by_network={STUDENT: times.weigh(loss + weight * second)},
            dropped={STUDENT: dropped | dropped_second},
            tracked={"rectification": mean_square(push).index_fill(0, torch.cat([near, fake, anywhere]), torch.nan)},
        )

    def distance(self, prediction: Tensor, wanted: Tensor) -> GuardedLoss:
        """Return the distance of each row `[B]`, and which rows were dropped."""
        square, dropped = guarded_consistency_loss(prediction, wanted, c=None)
        if self.config.loss == "l2":
            return GuardedLoss(square, dropped)
        c = self.config.barron_c
        return GuardedLoss(square / (c * (square.detach() / (c * c + 1e-8) + 1.0).sqrt()), dropped)

    @torch.no_grad()
    def one_step(self, network: nn.Module, start: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return what a network draws in one step from `start`."""
        t = torch.full((len(start),), self.view.t_max, dtype=torch.float64, device=start.device)
        jump = self.average_velocity(network, start, t, torch.zeros_like(t), batch.condition, guidance)
        return start - rows(t, start) * jump

    @torch.no_grad()
    def rectification(self, network: nn.Module, x: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return what is to be added to F: the velocity at t less that at -t, each element within ±`rectify_clip`."""
        real = self.average_velocity(network, x, t, t, batch.condition, guidance)
        fake = self.average_velocity(network, x, -t, -t, batch.condition, guidance)
        return (real - fake).clamp(-self.config.rectify_clip, self.config.rectify_clip)
