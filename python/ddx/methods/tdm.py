"""TDM: distribution matching along the student's own path of few steps (Luo et al. 2025, arXiv:2503.06674).

    x_k     the student's ODE at its times t_0 > t_1 > … > t_n = 0, without fresh noise
    x       = x_k - t_k v_theta(x_k, t_k)                          what the student sees, through its gradient
    x_s     = x_k + (s - t_k) v_theta, constant                    where its step ends, s = t_(k+1)
    x_t     = a x_s + sqrt(t^2 - (a s)^2) eps,  a = (1 - t) / (1 - s)           noised further, s < t < t_k
    student   d(x, stop-gradient(x + y_phi - y_psi)) / mean|x - y_phi|          d: Huber's or the square
    psi       w exp((|eps|^2 - |e|^2) / 2) |x - y_psi|^2,  e = (x_t - (1 - t) x) / t,  means over elements; w: min-SNR

Each step is matched over its own interval of times, so one fake score serves all steps without being told which. With
`renoise noise` t goes up to noise in every step, where the authors advise to tell it.

Intervals, losses, weights and rates are those of the authors' demonstration (Luo-Yihong/TDM at 81b019f,
train_tdm_demo.py, with the README's --use_huber and --use_separate). Its 900 of 1000 timesteps for PixArt are
`--start-time` here; the student draws with Euler's rule, which is DDIM on VP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.device import send
from ddx.errors import UsageError
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import FAKE, STUDENT, Batch, Losses, Turn
from ddx.methods.parts.config import above_zero, changed
from ddx.methods.parts.flow_view import clean, rows
from ddx.methods.parts.score_distillation import Generated, ScoreConfig, ScoreDistillation, Scores, score_gaps
from ddx.methods.parts.time_sampling import grid_index
from ddx.methods.parts.weighting import DenoisingConfig, denoising_loss
from ddx.networks.guidance import interval_input
from ddx.teachers.base import Sampler, Teacher

LEAST, GAP = 0.02, 0.01  # limits of an interval, as shares of the sampler's clock: 20 and 10 of 1000 timesteps


@dataclass(frozen=True, kw_only=True)
class TDMConfig(ScoreConfig):
    """The published form, in four steps. Its times are uniform over a step's interval; the time settings are unused."""

    num_steps: int = changed(ScoreConfig, "num_steps", 4)
    fake_rate: float = changed(ScoreConfig, "fake_rate", 5.0)
    fake_knows_step: bool = changed(ScoreConfig, "fake_knows_step", False)
    denoising_weight: str = changed(DenoisingConfig, "denoising_weight", "min-snr")
    renoise: str = option("step", "times to match a step at: up to its own, or up to noise", choices=("step", "noise"))
    loss: str = option("huber", "distance that moves the student", choices=("huber", "l2"))
    huber_c: float = option(1e-3, "the distance where Huber's loss turns from square to linear")

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "huber_c")
        if self.time_adaptive or self.time_sampling not in ("auto", "shifted") or self.time_shift != 1.0:
            raise UsageError("tdm draws the times of each step's interval", hint="leave the settings of times away")


@dataclass(frozen=True, kw_only=True)
class Step(Generated):
    """One step of the student: x as it sees it, and where the step ends, x_s at flow times `end`, constants `[B]`."""

    x_end: Tensor
    end: Tensor


class TDM(ScoreDistillation):
    """Trajectory distribution matching."""

    config: TDMConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 4e-6, "adam_beta1": 0.0, "adam_beta2": 0.95}
    sampler: Sampler = "ode"

    def __init__(self, config: TDMConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        if self.view.process.name == "vp" and self.first_time < self.view.t_max:
            raise UsageError(
                f"start_time = {config.start_time}: a student on VP draws with DDIM, from the noisiest time",
                hint="leave --start-time away",
            )

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the fake score's loss, or the student's."""
        guidance, of_student = self.draw_guidance(batch), STUDENT in turn.trains
        with torch.set_grad_enabled(of_student and torch.is_grad_enabled()):
            made = self.generate(networks[STUDENT], batch, guidance)
        t, noise = self.times_within(made, batch), self.draw_noise(batch)
        x_t = noised_further(made.x_end, made.end, t, noise)
        with interval_input(networks[FAKE], made.time):
            if of_student:
                return self.matched(made.x, x_t, t, batch, networks[FAKE], guidance)
            velocity = self.trained_fake_velocity(networks[FAKE], x_t, t, batch, guidance)
        loss, dropped = fake_loss(self.config, velocity, made.x, x_t, t, noise)
        return Losses(by_network={FAKE: loss}, dropped={FAKE: dropped})

    @torch.no_grad()
    def scores(self, x_t: Tensor, t: Tensor, batch: Batch, fake: nn.Module, guidance: Tensor | float) -> Scores:
        """Return what both scores see behind x_t."""
        y_teacher = clean(x_t, t, self.teacher_velocity(x_t, t, batch, guidance))
        y_fake = clean(x_t, t, self.fake_velocity(fake, x_t, t, batch, guidance))
        return Scores(x_t=x_t, t=t, y_teacher=y_teacher, y_fake=y_fake)

    def matched(
        self, x: Tensor, x_t: Tensor, t: Tensor, batch: Batch, fake: nn.Module, guidance: Tensor | float
    ) -> Losses:
        """Return the loss of each row of the student, and how far the scores are apart."""
        seen = self.scores(x_t, t, batch, fake, guidance)
        loss, dropped = self.generator_loss(x, seen, batch)
        return Losses(
            by_network={STUDENT: loss / x[0].numel()},
            dropped={STUDENT: dropped},
            tracked=score_gaps(seen),
            generated=x,
        )

    def generator_loss(self, x: Tensor, seen: Scores, batch: Batch) -> GuardedLoss:
        """Return the distance from x moved by the difference of the scores, over how far the teacher's is from x."""
        away = (x.detach() - seen.y_teacher).abs().flatten(1).mean(1).clamp(min=1e-5)
        huber_c = self.config.huber_c if self.config.loss == "huber" else None
        moved = x.detach() + seen.y_teacher - seen.y_fake
        loss, dropped = guarded_consistency_loss(x, moved, 1.0 / away, c=huber_c)
        return GuardedLoss(loss * x[0].numel(), dropped)

    def generate(self, student: nn.Module, batch: Batch, guidance: Tensor | float) -> Step:
        """Return one step of the student's path, another one in each row, through the gradient of its evaluation."""
        num_steps, noise = self.config.num_steps, self.draw_noise(batch)
        last = grid_index(batch.random.uniform(), num_steps) - 1
        times = send(self.student_times(num_steps), noise.device)
        x = start = self.view.start(noise, times[0])
        with torch.no_grad():
            for step in range(1, num_steps):
                velocity = self.velocity(student, x, times[step - 1].expand(len(x)), batch.condition, guidance)
                x = x + rows(times[step] - times[step - 1], x) * velocity
                start = torch.where((last >= step).reshape(-1, 1, 1, 1), x, start)
        t, end = times[last], times[last + 1]
        velocity = self.velocity(student, start, t, batch.condition, guidance)
        x_end = start + rows(end - t, start) * velocity.detach()
        return Step(x=clean(start, t, velocity), start=start, time=t, x_end=x_end, end=end)

    def times_within(self, made: Step, batch: Batch) -> Tensor:
        """Return flow times between the end of each row's step and its start, or noise, float64 `[B]`."""
        top = made.time if self.config.renoise == "step" else made.time.new_full((len(batch),), self.first_time)
        low, top = self.view.position(made.end).clamp(min=LEAST), self.view.position(top)
        return self.view.time_of_position(
            torch.lerp(low, torch.maximum(top - GAP, 0.5 * (low + top)), batch.random.uniform())
        )


def noised_further(x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x at flow times s `[B]`, on the path of some picture, noised to t >= s by unit noise; s below 1."""
    share = (1.0 - t) / (1.0 - s)
    return rows(share, x) * x + rows((t**2 - (share * s) ** 2).clamp(min=0.0).sqrt(), x) * noise


def fake_loss(config: TDMConfig, velocity: Tensor, x: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> GuardedLoss:
    """Return the fake score's loss of each row, weighed by how likely the noise that x is seen through is."""
    seen = (x_t - rows(1.0 - t, x_t) * x) / rows(t, x_t)
    loss, dropped = denoising_loss(config, velocity, seen - x, t)
    likelihood = (0.5 * (noise.square() - seen.square()).flatten(1).mean(1)).exp()
    return GuardedLoss(likelihood * loss, dropped)
