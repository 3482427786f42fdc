"""How each kernel is launched: block sizes, warps and pipeline stages, from a table by GPU or a default beside it.

Nothing is tuned while a program runs: `ddx bench kernels --tune` tries the candidates of every kernel and rewrites
`tuned.json`, which is committed. A GPU that the table does not name takes the defaults.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tuned.json")

Options = Mapping[str, int]


@dataclass
class Launch:
    """The launch options of one kernel: its `constexpr` block sizes in capitals, num_warps and num_stages."""

    name: str
    default: Options
    candidates: tuple[Options, ...] = ()
    forced: Options | None = field(default=None, repr=False)  # while a candidate is tried

    def __post_init__(self) -> None:
        """Enter the list of all kernels."""
        LAUNCHES[self.name] = self

    def options(self, device: torch.device) -> dict[str, Any]:
        """Return the keyword arguments of a launch on `device`."""
        chosen = self.forced or _table(_device_name(device)).get(self.name, self.default)
        # Whether a product and a sum are fused is stated, so that a new default never changes the numbers.
        return {**chosen, "enable_fp_fusion": False}

    @contextmanager
    def force(self, options: Options) -> Iterator[None]:
        """Launch with these options inside."""
        self.forced = options
        try:
            yield
        finally:
            self.forced = None


LAUNCHES: dict[str, Launch] = {}


@functools.cache
def _table(device_name: str) -> dict[str, Options]:
    found: dict[str, Options] = json.loads(TABLE.read_text()).get(device_name, {})
    return found


def _device_name(device: torch.device) -> str:
    return _cuda_name(device.index or 0) if device.type == "cuda" else device.type


@functools.cache
def _cuda_name(index: int) -> str:
    return torch.cuda.get_device_name(index)
