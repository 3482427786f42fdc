"""Tensors that live in the host's memory and visit the device: what a step reads once need not stay there.

free    what of the host's memory is left, for this machine or for its container
home    pinned memory of the host, from which a GPU copies while it computes
visit   a few tensors at a time are copied to the device, changed there and copied home; the next ones travel
        meanwhile, on streams of their own
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor

PART = 2**24  # values that visit at once


def free_memory(system: Path = Path("/")) -> int:
    """Return the bytes of the host's memory that can still be taken; what a file system only remembers counts as free.

    system: where /proc and /sys are. Where they do not say, there is no limit.
    """
    free = [2**63]
    with suppress(OSError, ValueError, KeyError):
        lines = (line.split(":") for line in (system / "proc/meminfo").read_text().splitlines())
        free.append({key: int(value.split()[0]) for key, value in lines}["MemAvailable"] * 1024)
    with suppress(OSError, ValueError, KeyError):  # a container's (cgroups, version 2); "max" where it has no limit
        group = system / "sys/fs/cgroup"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        free.append(limit - used + int(files))
    return max(0, min(free))


def allocate(shape: torch.Size, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Return an uninitialised tensor in the host's memory; all that lives there comes from here."""
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=pinned)


def empty_at_home(value: Tensor, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Return an uninitialised tensor like `value` in the host's memory, pinned where it visits a GPU.

    device: where it visits, if not where `value` is.
    """
    return allocate(value.shape, dtype or value.dtype, (device or value.device).type == "cuda")


def parts(values: Sequence[Tensor]) -> Iterator[slice]:
    """Yield slices of `values` with at most `PART` numbers each, or with one tensor that has more."""
    start = size = 0
    for stop, value in enumerate(values):
        if stop > start and size + value.numel() > PART:
            yield slice(start, stop)
            start, size = stop, 0
        size += value.numel()
    if start < len(values):
        yield slice(start, len(values))


def visit(groups: Sequence[Sequence[Tensor]], device: torch.device) -> Iterator[list[Tensor]]:
    """Yield copies on `device` of each group of tensors at home; what is written to them is copied home afterwards.

    Two groups are on the device at once. What the current stream does later finds everything at home.
    """
    travel = _Travel(device)
    arriving: list[Tensor] = []
    for number in range(len(groups) + 1):
        here = arriving
        arriving = travel.bring(groups[number]) if number < len(groups) else []
        if number > 0:
            travel.wait_for(here)
            yield here
            travel.take_home(here, groups[number - 1])
            here.clear()
    travel.end()


class _Travel:
    """Copies to a GPU and back, each way on a stream; on the processor plain copies."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        if self.on_gpu:
            self.inward, self.outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
            self.inward.wait_stream(torch.cuda.current_stream(device))

    def bring(self, home: Sequence[Tensor]) -> list[Tensor]:
        with self._on("inward"):
            return [torch.empty_like(v, device=self.device, pin_memory=False).copy_(v, non_blocking=True) for v in home]

    def wait_for(self, values: Sequence[Tensor]) -> None:
        if self.on_gpu:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self.inward)
            for value in values:
                value.record_stream(now)

    def take_home(self, values: Sequence[Tensor], home: Sequence[Tensor]) -> None:
        if self.on_gpu:
            self.outward.wait_stream(torch.cuda.current_stream(self.device))
        with self._on("outward"):
            for value, place in zip(values, home, strict=True):
                place.copy_(value, non_blocking=True)
                if self.on_gpu:
                    value.record_stream(self.outward)

    def end(self) -> None:
        if self.on_gpu:
            torch.cuda.current_stream(self.device).wait_stream(self.outward)

    def _on(self, stream: str) -> AbstractContextManager[object]:
        return torch.cuda.stream(getattr(self, stream)) if self.on_gpu else nullcontext()
