"""diffusers' schedulers for a teacher, all on the times that the family itself would take.

    flow    the sigmas of the family's own Euler, its shift included; a multistep rule in log(alpha / sigma) begins 1e-6
            below 1, where that is finite
    vp      trailing timesteps (Lin et al. 2024): the first is the noisiest of the table

So samplers differ in their rule alone, and begin at the same state. A pipeline may ask for its steps by number, by
sigmas or with a `mu` of its own: the grid is the teacher's for that number of steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ddx.process import VPProcess

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

Make = Callable[["Teacher", tuple[int, ...]], Any]
LEAST_SIGNAL = 1e-6  # of the first state of a multistep rule on flow times

_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}


def flow_sigmas(teacher: Teacher, num_steps: int, latent_shape: tuple[int, ...]) -> Tensor:
    """Return where the family's own sampler takes its steps, float32 `[n]`, falling from at most 1."""
    scheduler, _ = teacher.sampling_scheduler(num_steps, latent_shape)
    sigmas: Tensor = scheduler.sigmas[:num_steps].cpu()
    return sigmas


def _on_flow(kind: Any, *, doubled: bool = False, least_signal: float = 0.0, **settings: Any) -> Make:
    """Return how a scheduler of `kind` is made for a flow teacher. doubled: each time but the first comes twice."""

    def make(teacher: Teacher, latent_shape: tuple[int, ...]) -> Any:
        def set_timesteps(
            self: Any,
            num_inference_steps: int | None = None,
            device: Any = None,
            *,
            sigmas: Sequence[float] | None = None,
            mu: float | None = None,
        ) -> None:
            num_steps = num_inference_steps if sigmas is None else len(sigmas)
            assert num_steps is not None
            kind.set_timesteps(self, num_steps, device=device)
            times = flow_sigmas(teacher, num_steps, latent_shape)
            grid = torch.cat([times.clamp(max=1.0 - least_signal), times.new_zeros(1)])
            timesteps = times * self.config.num_train_timesteps
            if doubled:
                grid = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
                timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
            self.sigmas, self.timesteps = grid, timesteps.to(device)
            self.set_begin_index(0)

        return _subclass(kind, set_timesteps=set_timesteps)(**settings)

    return make


def _on_table(kind: Any, **settings: Any) -> Make:
    """Return how a scheduler of `kind` is made for a teacher with a table of betas."""

    def make(teacher: Teacher, latent_shape: tuple[int, ...]) -> Any:
        def set_timesteps(self: Any, num_inference_steps: int | None = None, device: Any = None, *more: Any) -> None:
            kind.set_timesteps(self, num_inference_steps, device, *more)
            if hasattr(self, "set_begin_index"):
                self.set_begin_index(0)

        more: dict[str, Any] = {"set_timesteps": set_timesteps}
        if kind in (EulerDiscreteScheduler, HeunDiscreteScheduler):  # their state is x / alpha
            more["init_noise_sigma"] = property(lambda self: (self.sigmas.max() ** 2 + 1.0) ** 0.5)
        return _subclass(kind, **more)(**table_of(teacher, kind), timestep_spacing="trailing", **settings)

    return make


def table_of(teacher: Teacher, kind: Any) -> dict[str, Any]:
    """Return the teacher's table as a scheduler of diffusers takes it: that of its own config, else its betas."""
    known: dict[str, Any] | None = getattr(teacher, "table", None)
    if known is None:
        assert isinstance(teacher.process, VPProcess)
        kept = teacher.process.alphas_cumprod
        known = {
            "num_train_timesteps": len(kept),
            "trained_betas": (1.0 - kept / torch.cat([kept.new_ones(1), kept[:-1]])).tolist(),
            "prediction_type": _PREDICTION_TYPES[teacher.prediction],
            "rescale_betas_zero_snr": teacher.process.zero_terminal_snr,
        }
    taken = inspect.signature(kind.__init__).parameters
    return {key: value for key, value in known.items() if key in taken}


def _subclass(kind: Any, **members: Any) -> Any:
    return type(kind.__name__, (kind,), members)


_MULTISTEP: dict[str, Any] = {"solver_order": 2, "final_sigmas_type": "zero"}
_ON_FLOW: dict[str, Any] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "least_signal": LEAST_SIGNAL,
    **_MULTISTEP,
}

FLOW: dict[str, Make] = {
    "euler": _on_flow(FlowMatchEulerDiscreteScheduler),
    "heun": _on_flow(FlowMatchHeunDiscreteScheduler, doubled=True),
    "dpmsolver++": _on_flow(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", **_ON_FLOW),
    "unipc": _on_flow(UniPCMultistepScheduler, **_ON_FLOW),
}
VP: dict[str, Make] = {
    "euler": _on_table(EulerDiscreteScheduler),
    "heun": _on_table(HeunDiscreteScheduler),
    "ddim": _on_table(DDIMScheduler, clip_sample=False, set_alpha_to_one=True, steps_offset=1),
    "ddpm": _on_table(DDPMScheduler, clip_sample=False, variance_type="fixed_small"),
    "dpmsolver++": _on_table(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", **_MULTISTEP),
    "unipc": _on_table(UniPCMultistepScheduler, **_MULTISTEP),
}
