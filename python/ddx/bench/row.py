"""One line of the result: a case at a size, whether it is right, how long it takes, and beside what."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ddx.bench.case import Case, Size
from ddx.bench.gates import Verdict
from ddx.bench.roofline import Roofline
from ddx.bench.targets import Target, target_of
from ddx.bench.timing import Times

BOTH = ", both passes"


@dataclass(kw_only=True)
class Row:
    """A case and what was measured of it.

    `times` has "ours" and those of "eager" and "compile" that ran; beside a case of the mode "dual" also "forward",
    stock's forward pass without tangents; beside one of the mode "backward" the same three once more with `BOTH`
    behind the name, for the forward pass and the backward pass.
    """

    case: Case
    size: Size
    dtype: torch.dtype
    roofline: Roofline
    judged: bool  # against the targets, which are a GPU's
    verdict: Verdict
    times: dict[str, Times] = field(default_factory=dict)
    spread: float | None = None  # between two measurements of ours: smaller differences are noise
    compile_s: float | None = None
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    launches: dict[str, int | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Operation, mode and size."""
        return f"{self.case.operation} {self.case.mode} {self.size}"

    @property
    def moved_bytes(self) -> int:
        """What must be read and written at least once."""
        return self.case.moved_elements * self.dtype.itemsize

    def us(self, contender: str, kind: str) -> float | None:
        """Return a median; kind is "graph" or "stream"."""
        times = self.times.get(contender)
        return None if times is None else (times.graph if kind == "graph" else times.stream).us

    def times_as_fast(self, as_what: str, kind: str) -> float | None:
        """Return how many times as fast ours is, both measured in the same way and over the same passes."""
        mine, other = self.us("ours" + (BOTH if as_what.endswith(BOTH) else ""), kind), self.us(as_what, kind)
        return other / mine if mine and other else None

    def judged_ratio(self, as_what: str) -> float | None:
        """Return the ratio of the CUDA graphs, or of the launched calls where one cannot be captured."""
        ratio = self.times_as_fast(as_what, "graph")
        return self.times_as_fast(as_what, "stream") if ratio is None else ratio

    @property
    def gpu_us(self) -> float | None:
        """Ours on the GPU alone, or as launched where there is no graph."""
        return self.us("ours" + self.passes, "graph") or self.us("ours" + self.passes, "stream")

    @property
    def passes(self) -> str:
        """`BOTH` where both passes are judged together, else nothing."""
        target = target_of(self.case.operation, self.case.mode)
        return BOTH if target is not None and target.both_passes and self.case.mode == "backward" else ""

    @property
    def roofline_share(self) -> float | None:
        """The least time that this much work can take, over the time it takes; of a GPU, where no cache holds it."""
        if not self.gpu_us or not self.judged:
            return None
        return self.roofline.seconds(moved_bytes=self.moved_bytes, flops=self.case.flops) / (self.gpu_us * 1e-6)

    @property
    def target(self) -> Target | None:
        """What was promised for this case, where promises are judged."""
        return target_of(self.case.operation, self.case.mode) if self.judged else None

    @property
    def missed(self) -> list[str] | None:
        """What was promised and not reached; None where nothing was promised, or nothing measured."""
        if self.target is None or self.gpu_us is None:
            return None
        forward = self.judged_ratio("forward")
        return self.target.missed(
            eager=self.judged_ratio("eager" + self.passes),
            compile=self.judged_ratio("compile" + self.passes),
            roofline=self.roofline_share,
            of_forward=1 / forward if forward else None,
            launches=self.launches.get("ours"),
            moved_bytes=self.moved_bytes,
        )

    @property
    def failures(self) -> list[str]:
        """Return why numbers of this row are missing."""
        if not self.verdict.passed:
            return [f"not timed: {self.verdict.reason}"]
        return [
            f"{contender}, {kind}: {measured.failure}"
            for contender, times in self.times.items()
            for kind, measured in (("as launched", times.stream), ("as a graph", times.graph))
            if measured.failure
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        share = self.roofline_share
        return {
            "operation": self.case.operation,
            "mode": self.case.mode,
            "size": str(self.size),
            "shapes": asdict(self.size),
            "dtype": str(self.dtype).removeprefix("torch."),
            "moved_bytes": self.moved_bytes,
            "flops": self.case.flops,
            "gate": _finite(asdict(self.verdict)),
            "times": {name: asdict(times) for name, times in self.times.items()},
            "times_as_fast": {
                name: {kind: self.times_as_fast(name, kind) for kind in ("graph", "stream")}
                for name in self.times
                if not name.startswith("ours")
            },
            "passes": self.passes,
            "bytes_per_s": self.moved_bytes / (self.gpu_us * 1e-6) if self.gpu_us else None,
            "roofline_share": share,
            "spread": self.spread,
            "compile_s": self.compile_s,
            "peak_bytes": self.peak_bytes,
            "launches": self.launches,
            "target": asdict(self.target) if self.target else None,
            "missed": self.missed,
            "failures": self.failures,
        }


def _finite(value: Any) -> Any:
    """Return the same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
