"""A chosen sampler: it refuses teachers that it cannot draw with, and gives the diffusers scheduler for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddx.errors import UsageError
from ddx.teachers.samplers.names import ANALYTIC, OWN, SAMPLERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddx.teachers.base import Teacher
    from ddx.teachers.samplers.analytic import Variances


@dataclass(frozen=True, kw_only=True)
class TeacherSampler:
    """One of `SAMPLERS` by name. `variances` are those of analytic-dpm; no other sampler has them."""

    name: str = OWN
    variances: Variances | None = None

    @property
    def is_own(self) -> bool:
        """Whether the teacher draws as its family does."""
        return self.name == OWN

    def identity(self) -> dict[str, Any]:
        """Return what a cache or a store must know of it beside the teacher, JSON values; nothing of the own one."""
        if self.is_own:
            return {}
        return {"sampler": self.name, **({} if self.variances is None else {"variances": self.variances.fingerprint()})}

    def scheduler(self, teacher: Teacher, latent_shape: tuple[int, ...]) -> Any:
        """Return a diffusers scheduler whose `set_timesteps(n)` takes the teacher's own n times, in whichever pipeline.

        Raises UsageError for a teacher of another process.
        """
        check_sampler(self.name, teacher)
        assert not self.is_own, "the own sampler is the pipeline's, or Teacher.sampling_scheduler"
        if self.name == ANALYTIC:
            from ddx.teachers.samplers.analytic import AnalyticDPMScheduler

            assert self.variances is not None, "a sampler of this name is opened with a store"
            return AnalyticDPMScheduler(teacher, latent_shape, self.variances)
        from ddx.teachers.samplers.schedulers import FLOW, VP

        make = VP[self.name] if teacher.process.name == "vp" else FLOW[self.name]
        return make(teacher, latent_shape)

    def steps(self, teacher: Teacher, num_steps: int, latent_shape: tuple[int, ...]) -> tuple[Any, Tensor]:
        """Return the scheduler with its timesteps set, and the process times (float64) at which the network is asked.

        There are as many as evaluations: of Heun's rule two a step, but one of the last.
        """
        scheduler = self.scheduler(teacher, latent_shape)
        scheduler.set_timesteps(num_steps, device=teacher.device)
        times: Tensor = scheduler.timesteps.double()
        return scheduler, times / teacher.process.num_train_timesteps if teacher.process.name == "flow" else times

    def noise_from(self, generators: Sequence[torch.Generator] | None) -> dict[str, Any]:
        """Return what a step is given to draw fresh noise from; ValueError where noise is needed and nothing is there.

        A generator a picture, so that a picture does not depend on its batch.
        """
        if SAMPLERS[self.name].deterministic:
            return {}
        if generators is None:
            raise ValueError(f"{self.name} draws fresh noise: it needs generators")
        return {"generator": list(generators)}


OWN_SAMPLER = TeacherSampler()


def check_sampler(name: str, teacher: Teacher) -> None:
    """Raise UsageError, naming those that can, where the sampler cannot draw with the teacher."""
    reason = cannot_draw(name, teacher)
    if reason is not None:
        able = [other for other in SAMPLERS if cannot_draw(other, teacher) is None]
        raise UsageError(f"sampler = {name} cannot draw with {teacher.name}: {reason}", hint=f"--sampler {_any(able)}")


def cannot_draw(name: str, teacher: Teacher) -> str | None:
    """Return why the sampler cannot draw with the teacher; None where it can."""
    process = teacher.process
    if process.name not in SAMPLERS[name].processes:
        wanted = " or ".join(_PROCESSES[one] for one in SAMPLERS[name].processes)
        return f"it is for {wanted}, and the teacher is of {_PROCESSES[process.name]}"
    if name == "heun" and process.name == "vp":
        if getattr(process, "zero_terminal_snr", False):
            return "it begins with a finite ratio of noise to picture, and the teacher's table with no picture at all"
        if teacher.prediction == "x0":
            return "diffusers has it for predictions of noise and v, and the teacher predicts the picture"
    return None


_PROCESSES = {"flow": "flow matching", "vp": "variance-preserving tables", "edm": "the process of EDM"}


def _any(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
