"""The settings of a preparation, without torch: `ddx prepare --help` needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from ddx.config import option
from ddx.errors import UsageError
from ddx.methods.parts.config import FlowConfig, changed, within


@dataclass(frozen=True, kw_only=True)
class PreparationConfig(FlowConfig):
    """What the prepared teacher has that the teacher has not."""

    qk_norm: bool = option(True, "add norms to the queries and keys of every attention layer")
    dense_time: bool = option(True, "feed t in [0, 1] to the time embedding instead of 1000 t")
    null_share: float = option(0.1, "share of rows with the empty caption")
    time_sampling: str = changed(FlowConfig, "time_sampling", "logit-normal")

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0.0, 1.0, "null_share")
        if not self.qk_norm and not self.dense_time:
            raise UsageError("nothing to prepare: qk_norm and dense_time are off", hint="leave one of them on")
