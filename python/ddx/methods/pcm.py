"""Phased consistency models (Wang et al. 2024, arXiv:2405.18407): consistency within each of M phases of the path.

    0 = s_0 < s_1 < … < s_M                                   the edges, where the student's M steps are
    f(x, t) = x + (s - t) v(x, t)                             s: the edge below t, or t itself
    x_r     = x_t + (r - t) v_phi                             one guided solver step of the teacher, r within the phase
    loss    = d( f(x_t, t), stop-gradient f(x_r, r) )

Every process is a straight line in flow time, on which DDIM is Euler's rule: so the student draws without fresh noise,
by one step for each phase. Times, rows and distance are those of the authors' scripts (G-U-N/Phased-Consistency-Model
at b127277, code/text_to_image_sd15/train_pcm_lora_sd15.py, code/text_to_image_sd3/train_pcm_lora_sd3.py), but for three
things: their edges are the next lower points of one grid, here each phase has its own; their last phase ends at the
first noise level, here at the picture; they draw the guidance of each row, which the student is not told, here it is
one scale or an input. Their adversarial loss is not here.

With `first_phases` the number of phases is halved in stages, down to M, as Hyper-SD's segments are (Ren et al. 2024,
arXiv:2404.13686).
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
from ddx.methods.base import STUDENT, TARGET, Batch, Losses, Turn
from ddx.methods.parts.config import at_least, changed, check_num_times
from ddx.methods.parts.consistency import ConsistencyConfig, ConsistencyMethod, same_dropout
from ddx.methods.parts.flow_view import rows
from ddx.methods.parts.time_sampling import Times, grid_index
from ddx.teachers.base import Sampler


@dataclass(frozen=True, kw_only=True)
class PCMConfig(ConsistencyConfig):
    """The published form, with four phases. Uniform times are uniform over the intervals of the grid."""

    num_steps: int = option(4, "number M of phases, in each of which the student draws one step")
    first_phases: int | None = option(None, "phases at the start of the run, halved in equal stages (none: num_steps)")
    solver_steps: int = option(50, "number N of grid intervals between noise and picture, shared out among the phases")
    huber_c: float = changed(ConsistencyConfig, "huber_c", 1e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "num_steps", "solver_steps")
        check_num_times(self)
        first = self.first_phases
        if first is not None and (self.student_times or first not in [self.num_steps << k for k in range(8)]):
            raise UsageError(
                f"first_phases = {first} is not num_steps = {self.num_steps} doubled some times, in equal phases",
                hint=f"--first-phases {2 * self.num_steps}, without --student-times",
            )


class PCM(ConsistencyMethod):
    """Phased consistency distillation."""

    config: PCMConfig
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 5e-6, "weight_decay": 1e-3}
    sampler: Sampler = "ode"

    def stretched(self, share: float) -> tuple[str, ...]:
        """Return the phases of the start, which are halved at shares of the run."""
        return ("first_phases",) if (self.config.first_phases or 0) > self.config.num_steps else ()

    def phases_at(self, step: int) -> int:
        """Return the number of phases of training step `step`."""
        first, last = self.config.first_phases or self.config.num_steps, self.config.num_steps
        stages = (first // last).bit_length()
        return first >> self.stage_at(step, stages, None)

    def grid(self, phases: int) -> Tensor:
        """Return flow times from 0 up, float64 `[M n + 1]`: n equal parts, on the sampler's clock, of each phase."""
        edges = self.view.position(self.student_times(phases).flip(0))
        parts = max(1, round(self.config.solver_steps / phases))
        shares = torch.arange(parts, dtype=torch.float64) / parts
        inner = torch.lerp(edges[:-1, None], edges[1:, None], shares).flatten()
        return self.view.time_of_position(torch.cat([inner, edges[-1:]]))

    def draw_triple(self, batch: Batch) -> tuple[Times, Tensor, Tensor, Tensor]:
        """Return the draw, and of each row its time, the grid's next one and the phase's end, float64 `[B]`."""
        times, phases = self.draw_times(batch), self.phases_at(batch.step)
        grid = send(self.grid(phases), times.t.device)
        number = len(grid) - 1
        if self.config.time_sampling == "uniform":
            index = grid_index(times.quantile, number)
        else:
            index = torch.searchsorted(grid, times.t).clamp(1, number)
        return times, grid[index], grid[index - 1], grid[(index - 1) // (number // phases) * (number // phases)]

    def draw_pair(self, batch: Batch) -> tuple[Times, Tensor, Tensor]:
        """See :meth:`ConsistencyMethod.draw_pair`."""
        return self.draw_triple(batch)[:3]

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the loss of each row, between the ends of its phase as seen from two times."""
        student, (times, t, r, end) = networks[STUDENT], self.draw_triple(batch)
        guidance, noise = self.draw_guidance(batch), self.draw_noise(batch)
        x_t = self.noisy(batch.x0, noise, t)
        with torch.no_grad():
            x_r = self.earlier(x_t, t, r, noise, batch, guidance)
            with same_dropout(x_t.device):
                velocity = self.velocity(networks.get(TARGET, student), x_r, r, batch.condition, guidance)
        prediction = x_t + rows(end - t, x_t) * self.velocity(student, x_t, t, batch.condition, guidance)
        huber_c = self.config.huber_c if self.config.loss == "huber" else None
        weight = self.weight(t, r, batch).float()
        loss, dropped = guarded_consistency_loss(prediction, x_r + rows(end - r, x_r) * velocity, weight, c=huber_c)
        return Losses(by_network={STUDENT: times.weigh(loss)}, dropped={STUDENT: dropped})
