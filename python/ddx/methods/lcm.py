"""Latent consistency distillation (Luo et al. 2023, arXiv:2310.04378), for flow and for VP teachers.

x_r  = one guided solver step of the teacher from (x_t, t) to the next grid time r      DDIM; on flow Euler
loss = d( f(x_t, t, s), stop-gradient f_target(x_r, r, s) )                             s: the guidance scale
flow:  f = x_t - t v                                    meets f(x, 0) = x by itself
VP:    f = c_skip x_t + c_out x0(x_t, t)
       c_skip = s_d^2 / ((10 t)^2 + s_d^2),  c_out = 10 t / sqrt((10 t)^2 + s_d^2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ddx.kernels.consistency import guarded_consistency_loss
from ddx.methods.base import STUDENT, Batch, Losses, Method, NetworkSpec, Turn
from ddx.methods.config import LCMConfig
from ddx.methods.time_sampling import grid_index, sample_positions
from ddx.networks.guidance import add_guidance_embedder, fold_guidance, guidance_input
from ddx.process import FlowProcess, Process, VPProcess
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition

TARGET = "target"


def solver_grid(process: Process, num_intervals: int, shift: float = 1.0) -> Tensor:
    """Return the N + 1 grid times from clean to noise, float64: equal steps, shifted towards noise for `shift` > 1.

    On VP the times are whole timesteps `n T/N - 1`, the first of them 0, as the paper's code has them.
    """
    positions = FlowProcess.shift(torch.linspace(0.0, 1.0, num_intervals + 1, dtype=torch.float64), shift)
    if isinstance(process, VPProcess):
        return (process.num_train_timesteps * positions + 1e-6).floor().sub(1.0).clamp(min=0.0)
    return positions * process.t_max


def intervals_at(progress: float, final: int, start: int | None) -> int:
    """Return the number of grid intervals at this share of the run: `start`, doubled at equal shares up to `final`."""
    if start is None or start >= final:
        return final
    stages = [start]
    while stages[-1] < final:
        stages.append(min(2 * stages[-1], final))
    return stages[min(int(progress * len(stages)), len(stages) - 1)]


class LCM(Method[LCMConfig]):
    """Latent consistency distillation."""

    def __init__(self, config: LCMConfig, teacher: Teacher) -> None:
        super().__init__(config, teacher)
        low, high = (4.0, 6.0) if isinstance(teacher.process, FlowProcess) else (6.0, 16.0)
        self.guidance_min = config.guidance_min if config.guidance_min is not None else low
        self.guidance_max = config.guidance_max if config.guidance_max is not None else high
        if config.guidance_min is None:
            self.guidance_min = min(self.guidance_min, self.guidance_max)
        if config.guidance_max is None:
            self.guidance_max = max(self.guidance_min, self.guidance_max)
        self.process = teacher.process

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance is an input of the student, and not one fixed number."""
        return self.guidance_min < self.guidance_max

    @property
    def export_guidance(self) -> float:
        """The guidance that an exported student draws with."""
        wanted = self.config.export_guidance
        if wanted is None:
            wanted = self.teacher.default_guidance
        return min(max(wanted, self.guidance_min), self.guidance_max)

    def networks(self) -> tuple[NetworkSpec, ...]:
        """Return the student, and the target unless the student is its own."""
        student = NetworkSpec(name=STUDENT)
        if self.config.target_decay == 0.0:
            return (student,)
        return student, NetworkSpec(name=TARGET, average_of=STUDENT, decay=self.config.target_decay)

    def build(self, spec: NetworkSpec) -> nn.Module:
        """Return a copy of the teacher's network, which takes guidance if the method trains a range of it."""
        network = super().build(spec)
        return add_guidance_embedder(self.teacher, network) if self.takes_guidance else network

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the consistency loss of each row, and which rows were dropped."""
        config, student = self.config, networks[STUDENT]
        intervals = intervals_at(batch.progress, config.solver_steps, config.solver_steps_start)
        grid = solver_grid(self.process, intervals, config.grid_shift).to(batch.x0.device)
        index = self._draw_index(batch, intervals)
        t, r = grid[index], grid[index - 1]
        guidance = self.guidance_min + (self.guidance_max - self.guidance_min) * batch.draws.uniform()
        x_t = self.process.add_noise(batch.x0, batch.draws.normal(*batch.x0.shape[1:]), t)

        with torch.no_grad():
            x_r = self.teacher_step(x_t, t, r, batch.condition, batch.null, guidance)
            target = self.consistency(networks.get(TARGET, student), x_r, r, batch.condition, guidance)
        prediction = self.consistency(student, x_t, t, batch.condition, guidance)
        if config.loss_space == "velocity":
            scale = _rows(self._velocity_scale(t), x_t)
            prediction, target = scale * prediction, scale * target
        huber_c = config.huber_c if config.loss == "huber" else None
        loss, dropped = guarded_consistency_loss(prediction, target, c=huber_c)
        return Losses(by_network={STUDENT: loss}, dropped={STUDENT: dropped})

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
        return _rows(c_skip, x_t) * x_t + _rows(c_out, x0) * x0

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
                corrected = slope + _rows(0.5 * ratio.nan_to_num(0.0), x) * (slope - before)
            else:
                corrected = slope
            x = self.process.solver_step(corrected, x, now, after, "flow")
            before = slope
        return x

    @torch.no_grad()
    def draw(
        self, student: nn.Module, noises: Sequence[Tensor], condition: Condition, *, guidance: float | None = None
    ) -> Tensor:
        """Multistep consistency sampling at equal steps of time (Song et al. 2023, algorithm 1)."""
        num_steps = len(noises)
        times = self.process.t_max * torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps
        scale = self.export_guidance if guidance is None else guidance
        x = noises[0]
        for step, time in enumerate(times):
            t = time.expand(len(x)).to(x.device)
            if step:
                x = self.process.add_noise(x, noises[step], t)
            x = self.consistency(student, x, t, condition, scale)
        return x

    def plain_network(self, student: nn.Module) -> nn.Module:
        """Return the student with `export_guidance` folded in."""
        return fold_guidance(self.teacher, student, self.export_guidance)

    def export_notes(self) -> dict[str, Any]:
        """Return the guidance of the exported student and the range that was trained."""
        return {"guidance": self.export_guidance, "guidance_range": [self.guidance_min, self.guidance_max]}

    def _draw_index(self, batch: Batch, intervals: int) -> Tensor:
        """Return the upper end n in 1..N of each row's grid interval, int64 `[B]`."""
        config = self.config
        positions = sample_positions(
            batch.draws.uniform(),
            kind=config.time_sampling,
            mean=config.time_mean,
            std=config.time_std,
            shift=config.time_shift,
        )
        index = grid_index(positions, intervals)
        if config.noise_share > 0.0:
            index = torch.where(batch.draws.uniform() < config.noise_share, intervals, index)
        return index

    def _velocity_scale(self, t: Tensor) -> Tensor:
        """Return (alpha + sigma) / sigma `[B]`: a difference of clean pictures times it is one of flow velocities."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return (alpha + sigma) / sigma


def _rows(coefficient: Tensor, images: Tensor) -> Tensor:
    return coefficient.to(images.device, images.dtype).reshape(-1, *(1,) * (images.ndim - 1))
