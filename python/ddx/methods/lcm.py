"""Latent consistency distillation (Luo et al. 2023, arXiv:2310.04378), for flow and for VP teachers.

x_r  = one guided solver step of the teacher from (x_t, t) to the next grid time r      DDIM; on flow Euler
loss = d( f(x_t, t, s), stop-gradient f_target(x_r, r, s) )                             s: the guidance scale
flow:  f = x_t - t v                                    meets f(x, 0) = x by itself
VP:    f = c_skip x_t + c_out x0(x_t, t)
       c_skip = s_d^2 / ((10 t)^2 + s_d^2),  c_out = 10 t / sqrt((10 t)^2 + s_d^2)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ddx.config import option
from ddx.device import send
from ddx.errors import UsageError
from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, TARGET, Batch, Losses, NetworkSpec, Turn, student_and_target
from ddx.methods.parts.config import FlowConfig, above_zero, at_least, within
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.time_sampling import grid_index, intervals_at, sample_times
from ddx.networks.guidance import guidance_input
from ddx.process import FlowProcess, Process, VPProcess
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition


@dataclass(frozen=True, kw_only=True)
class LCMConfig(FlowConfig):
    """The published form. Guidance ranges over 4 to 6 for flow teachers, 6 to 16 for VP, unless it is given."""

    solver_steps: int = option(50, "number N of grid intervals between noise and picture")
    solver_steps_start: int | None = option(None, "N at the start of the run, doubled in stages (none: constant)")
    solver_substeps: int = option(1, "solver steps of the teacher per grid interval")
    solver_order: int = option(1, "1: DDIM, on flow Euler; 2: Adams-Bashforth from the second substep on")
    grid_shift: float = option(1.0, "shift k of the grid towards noise, k t / (1 + (k - 1) t)")
    loss: str = option("huber", "distance between the two predictions", choices=("huber", "l2"))
    huber_c: float = option(0.001, "the distance where Huber's loss turns from square to linear")
    loss_space: str = option("x0", "space of the distance", choices=("x0", "velocity"))
    target_decay: float = option(0.95, "decay of the target, an average of the student; 0: the target is the student")
    sigma_data: float = option(0.5, "s of the boundary condition c_skip, c_out (VP teachers)")
    timestep_scaling: float = option(10.0, "factor on the timestep in c_skip and c_out (VP teachers)")
    noise_share: float = option(0.0, "additional share of rows that train at pure noise")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "solver_steps", "solver_substeps")
        if self.solver_order not in (1, 2):
            raise UsageError(f"solver_order = {self.solver_order} is not 1 or 2", hint="--solver-order 1 or 2")
        if self.solver_steps_start is not None and not 1 <= self.solver_steps_start <= self.solver_steps:
            raise UsageError(
                f"solver_steps_start = {self.solver_steps_start} is not in 1 … solver_steps = {self.solver_steps}",
                hint="leave it away, or raise --solver-steps",
            )
        above_zero(self, "grid_shift", "huber_c", "sigma_data", "timestep_scaling")
        within(self, 0.0, 1.0, "target_decay", open_end=True)
        within(self, 0.0, 1.0, "noise_share")


def solver_grid(process: Process, num_intervals: int, shift: float = 1.0) -> Tensor:
    """Return the N + 1 grid times from clean to noise, float64: equal steps, shifted towards noise for `shift` > 1.

    On VP the times are whole timesteps `n T/N - 1`, the first of them 0, as the paper's code has them.
    """
    positions = FlowProcess.shift(torch.linspace(0.0, 1.0, num_intervals + 1, dtype=torch.float64), shift)
    if isinstance(process, VPProcess):
        return (process.num_train_timesteps * positions + 1e-6).floor().sub(1.0).clamp(min=0.0)
    return positions * process.t_max


def sampling_times(process: Process, num_steps: int) -> Tensor:
    """Return the times that a student is asked at: equal steps; on VP those that diffusers' LCMScheduler picks."""
    if not isinstance(process, VPProcess):
        return process.t_max * torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps
    known = solver_grid(process, min(50, process.num_train_timesteps))[1:].flip(0)
    return known[(len(known) * torch.arange(num_steps, dtype=torch.float64) / num_steps).floor().long()]


class LCM(FlowMethod):
    """Latent consistency distillation."""

    config: LCMConfig

    def __init__(self, config: LCMConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        self.process = teacher.process
        if not isinstance(self.process, FlowProcess | VPProcess):
            raise UsageError(
                f"lcm is published for flow and VP teachers; {teacher.name} is of {self.process.name}",
                hint="--method cd, or another consistency method: they see any teacher as flow matching",
            )

    def usual_guidance(self) -> tuple[float, float]:
        """Return the published ranges of classifier-free guidance."""
        if self.teacher.embedded_guidance:
            return super().usual_guidance()
        return (4.0, 6.0) if isinstance(self.teacher.process, FlowProcess) else (6.0, 16.0)

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the start of a grid that grows finer."""
        return (
            ("solver_steps_start",) if (self.config.solver_steps_start or math.inf) < self.config.solver_steps else ()
        )

    def host_numbers(self, step: int, progress: float) -> Hashable:
        """Return the number of grid intervals."""
        return intervals_at(progress, self.config.solver_steps, self.config.solver_steps_start)

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the target unless the student is its own."""
        return student_and_target(self.config.target_decay)

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the consistency loss of each row, and which rows were dropped."""
        config, student = self.config, networks[STUDENT]
        intervals = intervals_at(batch.progress, config.solver_steps, config.solver_steps_start)
        grid = send(solver_grid(self.process, intervals, config.grid_shift), batch.x0.device)
        times = self.draw_times(batch)
        index = grid_index(times.t, intervals)
        if config.noise_share > 0.0:
            index = torch.where(batch.random.uniform() < config.noise_share, intervals, index)
        t, r = grid[index], grid[index - 1]
        guidance = self.draw_guidance(batch)
        x_t = self.process.add_noise(batch.x0, batch.random.normal(*batch.x0.shape[1:]), t)

        with torch.no_grad():
            with self.teacher.same_text(self.teacher.network()) if config.solver_substeps > 1 else nullcontext():
                x_r = self.teacher_step(x_t, t, r, batch.condition, batch.null, guidance)
            target = self.consistency(networks.get(TARGET, student), x_r, r, batch.condition, guidance)
        prediction = self.consistency(student, x_t, t, batch.condition, guidance)
        if config.loss_space == "velocity":
            scale = rows(self._velocity_scale(t), x_t)
            prediction, target = scale * prediction, scale * target
        huber_c = config.huber_c if config.loss == "huber" else None
        loss, dropped = guarded_consistency_loss(prediction, target, c=huber_c)
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})

    def times_at(self, quantile: Tensor) -> Tensor:
        """Return places on the grid, [0, 1] of its intervals, at quantiles of the distribution that is asked for."""
        return sample_times(quantile, self.config, t_min=0.0, t_max=1.0)

    def consistency(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Return f(x_t, t, guidance), scaled latents float32 `[B, C, h, w]`. At the clean end it is x_t itself."""
        with guidance_input(network, guidance):
            prediction = self.teacher.predict(network, x_t, t, condition)
        x0 = self.process.convert(prediction, x_t, t, self.teacher.prediction, "x0")
        if isinstance(self.process, FlowProcess):
            return x0
        scaled = self.config.timestep_scaling * t
        total = scaled**2 + self.config.sigma_data**2
        c_skip, c_out = self.config.sigma_data**2 / total, scaled / total.sqrt()
        return rows(c_skip, x_t) * x_t + rows(c_out, x0) * x0

    def teacher_step(
        self, x_t: Tensor, t: Tensor, r: Tensor, condition: Condition, null: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Return where the teacher's guided ODE takes x_t at time r, by `solver_substeps` equal solver steps.

        With order 2 each substep but the first extrapolates the slope from the one before (Adams-Bashforth).
        """
        network, substeps, x = self.teacher.network(), self.config.solver_substeps, x_t
        times = [torch.lerp(t, r, step / substeps) for step in range(substeps + 1)]
        clock = [self.process.flow_time(time) for time in times]
        before: Tensor | None = None
        for step, (now, after) in enumerate(pairwise(times)):
            prediction = self.teacher.guided(network, x, now, condition, null, guidance)
            slope = self.process.convert(prediction, x, now, self.teacher.prediction, "flow")
            if before is not None and self.config.solver_order == 2:
                ratio = (clock[step + 1] - clock[step]) / (clock[step] - clock[step - 1])
                # an interval of no length, the last one of a grid of every timestep, has no ratio and needs none
                corrected = slope + rows(0.5 * ratio.nan_to_num(0.0), x) * (slope - before)
            else:
                corrected = slope
            x = self.process.solver_step(corrected, x, now, after, "flow")
            before = slope
        return x

    def drawn(
        self, student: nn.Module, noises: Sequence[Tensor], condition: Condition, guidance: Tensor | float
    ) -> Tensor:
        """Multistep consistency sampling (Song et al. 2023, algorithm 1), at the times of the exported scheduler."""
        x = noises[0]
        times = sampling_times(self.process, len(noises))
        if self.own_times:
            times = self.view.own_time(self.student_times(len(noises))[:-1])
        for step, time in enumerate(send(times, x.device)):
            t = time.expand(len(x))
            if step:
                x = self.process.add_noise(x, noises[step], t)
            x = self.consistency(student, x, t, condition, guidance)
        return x

    def export_notes(self) -> dict[str, Any]:
        """Return the guidance of the exported student, the range that was trained, and times that were given."""
        notes = {"guidance": self.export_guidance, "guidance_range": [self.guidance_min, self.guidance_max]}
        return super().export_notes() if self.own_times else notes

    def _velocity_scale(self, t: Tensor) -> Tensor:
        """Return (alpha + sigma) / sigma `[B]`: a difference of clean pictures times it is one of flow velocities."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return (alpha + sigma) / sigma
