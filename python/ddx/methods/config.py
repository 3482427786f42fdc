"""The settings of every method, free of torch so that the command line can show them at once."""

from __future__ import annotations

from dataclasses import dataclass

from ddx.config import option
from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class LCMConfig:
    """Latent consistency distillation (Luo et al. 2023). The defaults are the published form."""

    solver_steps: int = option(50, "number N of grid intervals between noise and picture")
    solver_steps_start: int | None = option(None, "N at the start, doubled on the way (none: N throughout)")
    solver_substeps: int = option(1, "teacher solver steps within one grid interval")
    solver_order: int = option(1, "1: DDIM, on flow Euler; 2: Adams-Bashforth from the second substep on")
    grid_shift: float = option(1.0, "shift k of the grid towards noise, k t / (1 + (k - 1) t)")
    guidance_min: float | None = option(None, "lowest guidance trained (none: 4 for flow, 6 for VP teachers)")
    guidance_max: float | None = option(None, "highest guidance trained (none: 6 for flow, 16 for VP)")
    export_guidance: float | None = option(None, "guidance of the exported student (none: the teacher's default)")
    loss: str = option("huber", "distance between the two predictions", choices=("huber", "l2"))
    huber_c: float = option(0.001, "the distance where Huber's loss turns from square to linear")
    loss_space: str = option("x0", "what the distance is taken of", choices=("x0", "velocity"))
    target_decay: float = option(0.95, "decay of the target, an average of the student; 0: the student itself")
    sigma_data: float = option(0.5, "s of the boundary condition c_skip, c_out (VP teachers)")
    timestep_scaling: float = option(10.0, "factor on the timestep in c_skip and c_out (VP teachers)")
    time_sampling: str = option("uniform", "how grid times are drawn", choices=("uniform", "logit-normal", "shifted"))
    time_mean: float = option(0.0, "mean of the logit-normal times")
    time_std: float = option(1.0, "standard deviation of the logit-normal times")
    time_shift: float = option(3.0, "shift k of the shifted times; above 1 prefers noise")
    noise_share: float = option(0.0, "share of rows trained at pure noise, on top of the drawn ones")

    def __post_init__(self) -> None:
        for name in ("solver_steps", "solver_substeps"):
            _at_least(name, getattr(self, name), 1)
        if self.solver_order not in (1, 2):
            raise UsageError(f"solver_order = {self.solver_order} is not 1 or 2", hint="--solver-order 1 or 2")
        if self.solver_steps_start is not None and not 1 <= self.solver_steps_start <= self.solver_steps:
            raise UsageError(
                f"solver_steps_start = {self.solver_steps_start} is not in 1 … solver_steps = {self.solver_steps}",
                hint="leave it away, or raise --solver-steps",
            )
        for name in ("grid_shift", "huber_c", "sigma_data", "timestep_scaling", "time_std", "time_shift"):
            if getattr(self, name) <= 0.0:
                raise UsageError(
                    f"{name} = {getattr(self, name)} must be above 0", hint=f"leave {name} away for its default"
                )
        for name, below in (("target_decay", True), ("noise_share", False)):
            value = getattr(self, name)
            if not (0.0 <= value < 1.0 or (not below and value == 1.0)):
                raise UsageError(f"{name} = {value} is not in [0, 1{')' if below else ']'}", hint=f"leave {name} away")
        low, high = self.guidance_min, self.guidance_max
        if low is not None and high is not None and low > high:
            raise UsageError(
                f"guidance_min = {low} is above guidance_max = {high}",
                hint="give both the same value for a fixed guidance",
            )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(
            f"{name} = {value} must be at least {least}", hint=f"--{name.replace('_', '-')} {least} or more"
        )
