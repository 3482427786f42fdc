"""How kernels are launched: on the device of their tensors, with options from a table by GPU or a default beside it.

Nothing is tuned while a program runs: `ddx bench kernels --tune` tries the candidates of every kernel and rewrites
`tuned.json`, which is committed. A GPU that the table does not name takes the defaults.

A training step launches a thousand kernels, so nothing is worked out twice: options and constants are made once and
known by identity, and a kernel that was compiled is found again by its arguments without Triton's own search.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import Parameter
from triton.runtime.jit import JITFunction

TABLE = Path(__file__).with_name("tuned.json")

Options = Mapping[str, int]


class Constants(dict[str, Any]):
    """What a kernel is compiled with: `constexpr` arguments, num_warps, num_stages. Equal to itself alone."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._joined: dict[Any, Constants] = {}

    def joined(self, **more: Any) -> Constants:
        """These and `more`: the same object whenever the same is asked for."""
        key = tuple(more.items())
        found = self._joined.get(key)
        if found is None:
            found = self._joined[key] = Constants(self, **more)
        return found


class Kernel:
    """A Triton kernel whose `constexpr` parameters come last."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function: Any = triton.jit(function)
        self._compiles = isinstance(self.function, JITFunction)  # or it is interpreted
        self._compiled: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def launch(self, grid: tuple[int, ...], device: torch.device, constants: Constants, *arguments: Any) -> None:
        """Run `grid` programs on `device`, where the tensors are, whichever device is the current one."""
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch(grid, device, constants, arguments)
        else:
            self._launch(grid, device, constants, arguments)

    def _launch(
        self, grid: tuple[int, ...], device: torch.device, constants: Constants, arguments: tuple[Any, ...]
    ) -> None:
        if not self._compiles:
            self.function[grid](*arguments, **constants)
            return
        key = device.index, constants, _kind(arguments)
        found = self._compiled.get(key)
        if found is None:
            compiled = self.function[grid](*arguments, **constants)
            names = [parameter.name for parameter in self.function.params if parameter.is_constexpr]
            self._compiled[key] = compiled, tuple(constants[name] for name in names)
        else:
            compiled, last = found
            compiled[(*grid, 1, 1)[:3]](*arguments, *last)


def _kind(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """All that Triton specialises a kernel by, and more: types, alignment, and integers by their value."""
    kind: list[Any] = []
    for value in arguments:
        of = type(value)
        if of is int:
            kind.append(value)
        elif of is Tensor or of is Parameter:
            kind += (value.dtype, value.data_ptr() % 16)
        elif isinstance(value, tuple):
            kind.append(_kind(value))
        else:
            kind += (of, value)
    return tuple(kind)


def blocks(number: int, size: int) -> int:
    """How many blocks of `size` hold `number`."""
    return -(-number // size)


@dataclass(eq=False)
class Launch:
    """The launch options of one kernel: its `constexpr` block sizes in capitals, num_warps and num_stages."""

    name: str
    default: Options
    candidates: tuple[Options, ...] = ()
    forced: Options | None = field(default=None, repr=False)  # while a candidate is tried

    def __post_init__(self) -> None:
        """Enter the list of all kernels."""
        LAUNCHES[self.name] = self

    def options(self, device: torch.device) -> Constants:
        """The keyword arguments of a launch on `device`: the same object as long as they do not change."""
        return _complete(tuple(self.forced.items())) if self.forced is not None else _chosen(self, device)

    @contextmanager
    def force(self, options: Options) -> Iterator[None]:
        """Launch with these options inside."""
        self.forced = options
        try:
            yield
        finally:
            self.forced = None


LAUNCHES: dict[str, Launch] = {}


def forget_table() -> None:
    """Read the table anew at the next launch."""
    _table.cache_clear()
    _chosen.cache_clear()


@functools.cache
def _chosen(launch: Launch, device: torch.device) -> Constants:
    chosen = _table(_device_name(device)).get(launch.name, launch.default)
    return _complete(tuple(chosen.items()))


@functools.cache
def _complete(options: tuple[tuple[str, int], ...]) -> Constants:
    # Whether a product and a sum are fused is stated, so that a new default never changes the numbers.
    return Constants(options, enable_fp_fusion=False)


@functools.cache
def _table(device_name: str) -> dict[str, Options]:
    found: dict[str, Options] = json.loads(TABLE.read_text()).get(device_name, {})
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
