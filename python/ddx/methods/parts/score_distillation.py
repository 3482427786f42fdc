"""What the methods of score distillation share: a generator, and a fake score that learns what it generates.

    x     = z - t1 v_theta(z, t1)                z: unit noise as the exported pipeline feeds it at time t1
    x_t   = (1 - t) x + t eps,  e = eps - x
    y_phi = x_t - t v_phi(x_t, t)                phi: the teacher, guided
    y_psi = x_t - t v_psi(x_t, t)                psi: the fake score, which learns |v_psi - e|^2 on stopgrad(x)

The generator's loss, of (x, y_phi, y_psi), is the method's own. Captions are enough: of the stored latents the shape
alone is read. A generator of several steps is trained at the states that its own sampler comes through, which are
simulated without gradients (Yin et al. 2024b, backward simulation). There the fake score takes the time that x was
generated from as an input: of the mixture over all steps, which is what it learns otherwise, the last steps make up for
what the first ones cannot, and what is drawn in the end is off.

A teacher that was trained at timesteps (VP) is looked at uniformly in them, 20 to 979 of 1000, and its fake score
learns eps, as published: mingyuanzhou/SiD-LSG (commit 709fc22e), training/sid_training_loop.py, and tianweiy/DMD2
(commit 8d8fa556), main/sd_guidance.py, whose fake score and discriminator look at 0 to 999.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.device import send
from ddx.errors import UsageError
from ddx.kernels.guarded_loss import GuardedLoss
from ddx.methods.base import FAKE, STUDENT, Batch, Losses, NetworkSpec, Turn
from ddx.methods.parts.config import TIME_SAMPLING, FlowConfig, above_zero, at_least, changed, check_num_times, within
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.flow_view import clean, mean_square
from ddx.methods.parts.reward import RewardConfig
from ddx.methods.parts.time_sampling import grid_index
from ddx.methods.parts.weighting import DENOISING_WEIGHTS, DenoisingConfig, denoising_loss
from ddx.networks.guidance import add_interval_embedder, interval_input
from ddx.teachers.base import Teacher

NUM_BINS = 4


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(FlowConfig, DenoisingConfig, RewardConfig):
    """The settings of all methods of the family."""

    num_steps: int = option(1, "number of steps that the student learns to draw in")
    start_time: float = option(1.0, "flow time at which drawing starts; 0.7143 is step 625 of 1000 of Stable Diffusion")
    fake_updates: int = option(1, "updates of the fake score per update of the student")
    fake_knows_step: bool = option(
        True, "with several steps, tell the fake score which step its input comes from; no: it sees a mixture"
    )
    fake_rate: float = option(1.0, "learning rate of the fake score, relative to the student's")
    time_sampling: str = option(
        "auto",
        "distribution of the times; timesteps: uniform in those of the teacher; auto: timesteps where the teacher has "
        "them (VP) and time_shift is 1, else shifted",
        choices=("auto", "timesteps", *TIME_SAMPLING),
    )
    time_shift: float = changed(FlowConfig, "time_shift", 1.0)
    denoising_weight: str = option(
        "auto",
        "weight of the fake score's loss by noise level, relative to the flow velocity's error; eps, x0: the error of "
        "that counts the same at all levels; auto: eps where the teacher has timesteps (VP), else none",
        choices=("auto", *DENOISING_WEIGHTS),
    )
    time_low: float = option(0.02, "lower limit of the re-noising times, as a share of their range")
    time_high: float = option(0.98, "upper limit of the re-noising times, as a share of their range")

    def __post_init__(self) -> None:
        super().__post_init__()
        DenoisingConfig.__post_init__(self)
        RewardConfig.__post_init__(self)
        at_least(self, 1, "num_steps", "fake_updates")
        check_num_times(self)
        above_zero(self, "start_time", "fake_rate")
        within(self, 0.0, 1.0, "start_time", "time_low", "time_high")
        if self.time_low >= self.time_high:
            raise UsageError(
                f"time_low = {self.time_low} is not below time_high = {self.time_high}",
                hint="--time-low 0.02 --time-high 0.98",
            )


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What the student generates: x, differentiable, from `start` at flow times `time`, float64 `[B]`."""

    x: Tensor
    start: Tensor
    time: Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What both scores see behind the re-noised x, `[B, C, h, w]`: x_t at flow times t, `[B]`, and their x0."""

    x_t: Tensor
    t: Tensor
    y_teacher: Tensor
    y_fake: Tensor


class ScoreDistillation(FlowMethod):
    """A student that generates, taught by the difference of two scores of what it generates."""

    config: ScoreConfig
    guided_networks = (STUDENT, FAKE)

    def __init__(self, config: ScoreConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        if not self.own_times:
            self.first_time = min(config.start_time, self.view.t_max)
        has_timesteps = self.view.process.name == "vp"
        auto_weight = "eps" if has_timesteps else "none"
        self.fake_weight = auto_weight if config.denoising_weight == "auto" else config.denoising_weight
        auto_timesteps = config.time_sampling == "auto" and has_timesteps and config.time_shift == 1.0
        self.draws_timesteps = auto_timesteps or config.time_sampling == "timesteps"
        if self.draws_timesteps and not has_timesteps:
            raise UsageError(
                f"time_sampling = timesteps: {teacher.name} has times and no timesteps", hint="--time-sampling uniform"
            )

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student and the fake score, both copies of the teacher."""
        return NetworkSpec(name=STUDENT), NetworkSpec(name=FAKE, learning_rate_scale=self.config.fake_rate)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return a copy of the teacher's network; the fake score takes the time of the step that it looks at."""
        network = super().build(spec)
        if spec.name == FAKE and self.config.num_steps > 1 and self.config.fake_knows_step:
            add_interval_embedder(self.teacher, network, folded=False)
        return network

    def turns(self, step: int) -> tuple[Turn, ...]:
        """Return the updates of the fake score, then the student's."""
        fake = Turn(trains=(FAKE,), name="fake score")
        return (*self.config.fake_updates * (fake,), Turn(trains=(STUDENT,), name="student"))

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the fake score's denoising loss, or the student's."""
        guidance = self.draw_guidance(batch)
        if STUDENT in turn.trains:
            return self.student_losses(batch, networks, guidance)
        with torch.no_grad():
            made = self.generate(networks[STUDENT], batch, guidance)
        with interval_input(networks[FAKE], made.time):
            return self.fake_losses(made.x, batch, networks, guidance)

    # the two turns

    def fake_losses(
        self, x: Tensor, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float
    ) -> Losses:
        """Return the flow matching loss of the fake score on what was generated, with times that may adapt."""
        times, noise = self.draw_times(batch), self.draw_noise(batch)
        x_t = self.noisy(x, noise, times.t)
        velocity = self.trained_fake_velocity(networks[FAKE], x_t, times.t, batch, guidance)
        loss, dropped = denoising_loss(self.config, velocity, noise - x, times.t, self.fake_weight)
        return Losses(by_network={FAKE: times.weigh(loss)}, dropped={FAKE: dropped})

    def student_losses(self, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float) -> Losses:
        """Return the generator's loss, a mean over the elements of a row, and how far the scores are apart."""
        made = self.generate(networks[STUDENT], batch, guidance)
        with interval_input(networks[FAKE], made.time):
            seen = self.look(made.x, batch, networks[FAKE], guidance, made.time)
            second = self.second_loss(made, seen, batch, networks, guidance)
        loss, dropped = self.generator_loss(made.x, seen, batch)
        return Losses(
            by_network={STUDENT: loss / made.x[0].numel()},
            secondary={} if second is None else {STUDENT: second},
            dropped={STUDENT: dropped},
            tracked=score_gaps(seen),
            generated=made.x,
        )

    @abstractmethod
    def generator_loss(self, x: Tensor, seen: Scores, batch: Batch) -> GuardedLoss:
        """Return the loss of each row, a sum over its elements, whose gradient by x moves the student."""

    def second_loss(
        self, made: Generated, seen: Scores, batch: Batch, networks: Mapping[str, nn.Module], guidance: Tensor | float
    ) -> Tensor | None:
        """Return a further loss of each row of the student, weighted, if the method has one."""
        return None

    # what they are made of

    def generate(self, student: nn.Module, batch: Batch, guidance: Tensor | float) -> Generated:
        """Return what the student generates, through the gradient of one evaluation, another one in each row.

        The evaluations before it run without gradients, and for all rows, so that no device waits for a count.
        """
        num_steps, noise = self.config.num_steps, self.draw_noise(batch)
        last = grid_index(batch.random.uniform(), num_steps) - 1
        times = send(self.student_times(num_steps), noise.device)
        x = start = self.view.start(noise, times[0])
        with torch.no_grad():
            for step in range(1, num_steps):
                clean = self.predict_x0(student, x, times[step - 1].expand(len(x)), batch.condition, guidance)
                x = self.noisy(clean, self.draw_noise(batch), times[step])
                start = torch.where((last >= step).reshape(-1, 1, 1, 1), x, start)
        x = self.predict_x0(student, start, times[last], batch.condition, guidance)
        return Generated(x=x, start=start, time=times[last])

    def times_at(self, quantile: Tensor) -> Tensor:
        """See :meth:`FlowMethod.times_at`; the distribution is cut at both ends."""
        return self.times_between(self.config.time_low, self.config.time_high, quantile)

    def times_between(self, low: float, high: float, quantile: Tensor) -> Tensor:
        """Return the flow times, float64, at quantiles in [0, 1) of the distribution, cut to shares of its range."""
        share = low + (high - low) * quantile
        return self.view.step_times(share) if self.draws_timesteps else super().times_at(share)

    def score_times(self, batch: Batch) -> Tensor:
        """Return the generator's re-noising times, float64 `[B]`. They never adapt: its loss is no measure of need."""
        return self.times_between(self.config.time_low, self.config.time_high, batch.random.uniform())

    def looks_through(self, batch: Batch) -> tuple[bool, bool]:
        """Return whether gradients flow through the teacher, and through the fake score, into x."""
        return False, False

    def look(
        self, x: Tensor, batch: Batch, fake: nn.Module, guidance: Tensor | float, time: Tensor | None = None
    ) -> Scores:
        """Return what both scores see behind x at drawn times; `time`: the flow times that x was generated from."""
        t, noise = self.score_times(batch), self.draw_noise(batch)
        x_t = self.noisy(x, noise, t)
        known = torch.is_grad_enabled()
        through_teacher, through_fake = self.looks_through(batch)
        with torch.set_grad_enabled(known and through_teacher):
            y_teacher = clean(x_t, t, self.teacher_velocity(x_t, t, batch, guidance))
        with torch.set_grad_enabled(known and through_fake):
            y_fake = clean(x_t, t, self.fake_velocity(fake, x_t, t, batch, guidance))
        return Scores(x_t=x_t, t=t, y_teacher=y_teacher, y_fake=y_fake)

    def fake_velocity(self, fake: nn.Module, x_t: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float) -> Tensor:
        """Return the fake score's velocity as the generator's loss sees it."""
        return self.velocity(fake, x_t, t, batch.condition, guidance)

    def trained_fake_velocity(
        self, fake: nn.Module, x_t: Tensor, t: Tensor, batch: Batch, guidance: Tensor | float
    ) -> Tensor:
        """Return the fake score's velocity as its own loss sees it."""
        return self.velocity(fake, x_t, t, batch.condition, guidance)


@torch.no_grad()
def score_gaps(seen: Scores) -> dict[str, Tensor]:
    """Return the mean square distance of the two scores' velocities, `[B]`, over all times and by quarter of them.

    It falls as what the student draws comes to be distributed as the teacher says, where the loss itself oscillates.
    Rows of another quarter are NaN, which a meter leaves out.
    """
    gap = mean_square(seen.y_teacher - seen.y_fake) / seen.t.float().square().clamp(min=1e-6)
    quarter = (seen.t * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    names = [f"score_gap_t{100 * (k + 1) // NUM_BINS}" for k in range(NUM_BINS)]
    parts = {name: gap.masked_fill(quarter != k, float("nan")) for k, name in enumerate(names)}
    return {"score_gap": gap, **parts}
