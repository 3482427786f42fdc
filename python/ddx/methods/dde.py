"""DDE: denoisers of the data and of the samples at one noise level (Bigdeli et al. 2020, arXiv:2001.02728).

    dL/dx = y_psi - y_phi  at the one flow time of `time_set`

the gradient of the Kullback-Leibler divergence between both distributions blurred with that noise, which is zero only
where they are equal. Diff-Instruct integrates it over all times; one level is what its fake score has to learn.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddx.errors import UsageError
from ddx.methods.diff_instruct import DiffInstruct, DiffInstructConfig
from ddx.methods.parts.config import changed


@dataclass(frozen=True, kw_only=True)
class DDEConfig(DiffInstructConfig):
    """The one noise level is that of `time_set`."""

    time_sampling: str = changed(DiffInstructConfig, "time_sampling", "set")
    time_set: tuple[float, ...] = changed(DiffInstructConfig, "time_set", (0.3,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_sampling != "set" or len(self.time_set) != 1:
            raise UsageError(
                f"time_sampling = {self.time_sampling} and time_set = {self.time_set}: dde has one noise level",
                hint="--time-set 0.3, or --method diff-instruct for many",
            )


class DDE(DiffInstruct):
    """Denoising density estimators as teacher and critic."""

    config: DDEConfig
