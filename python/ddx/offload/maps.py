"""A decoder's large maps wait on the host, and each operation brings in what it computes with.

A decoder holds half a dozen maps of a whole picture at once, which outweigh its weights many times. Within
`maps_on_host` a result above an eighth of the limit goes to the host. An operation whose inputs and result are within
the limit runs whole; another runs in parts: pointwise operations and reductions along the dimension that lies outermost
in memory, group norms by groups, convolutions and enlargements by rows with the rows beside them. No part sees less
than it would in the whole, so that nothing but the rounding of a convolution or a sum can change, and no seam appears.

What only moves values (cat, pad, pixel shuffle) runs on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

KEPT = 8  # results above the limit's KEPTth part go to the host


def _named(names: str) -> frozenset[Any]:
    return frozenset(getattr(aten, name) for name in names.split())


_MOVES = _named("clone _unsafe_view cat constant_pad_nd pixel_shuffle pixel_unshuffle repeat copy_")
_POINTWISE = _named(
    "silu silu_ relu relu_ gelu sigmoid tanh neg pow rsqrt sqrt reciprocal _to_copy add add_ sub mul mul_ div div_ "
    "clamp clamp_ clamp_min"
)
_REDUCTIONS = _named("mean sum amax linalg_vector_norm")
_ENLARGES = _named("upsample_nearest2d _upsample_nearest_exact2d")


class maps_on_host(TorchDispatchMode):
    """Within, no operation takes more than about `limit` bytes of `device` for its inputs and result.

    For one forward pass without gradients. Weights are where they are; those on the host, `weights`, may come in and
    go. On the processor the same parts are computed.
    """

    def __init__(self, device: torch.device, limit: int, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.device, self.limit, self.kept = device, limit, limit // KEPT
        self._weights = {value.untyped_storage()._cdata for value in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation whole, in parts or on the host."""
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if _is_view(func) or func.namespace == "prim":
            return func(*args, **kwargs)
        if packet is aten._to_copy and args[0].untyped_storage()._cdata in self._weights:
            return func(*args, **kwargs)
        if packet in _MOVES or (packet is aten._to_copy and kwargs.get("dtype") in (None, args[0].dtype)):
            return self._move(func, args, kwargs)
        if packet is aten.convolution:
            return self._convolution(func, args, kwargs)
        if packet is aten.native_group_norm:
            return self._group_norm(func, args)
        if packet in _ENLARGES:
            return self._enlarge(packet, func, args, kwargs)
        if packet in _POINTWISE or packet in _REDUCTIONS:
            dims = _reduced(packet, args, kwargs) if packet in _REDUCTIONS else ()
            return self._whole(func, args, kwargs) if dims is None else self._pointwise(func, args, kwargs, dims)
        return self._whole(func, args, kwargs)

    # where values are

    def _is_large(self, value: Tensor) -> bool:
        return _num_bytes(value) > self.kept and not isinstance(value, torch.nn.Parameter)

    def _away(self, value: Tensor) -> bool:
        """Whether a value waits on the host: a large one, or a part of one."""
        return self._is_large(value) or (value.ndim > 0 and value.device.type != self.device.type)

    def _in(self, value: Any) -> Any:
        here = isinstance(value, Tensor) and value.ndim > 0 and value.device.type != self.device.type
        return value.to(self.device) if here else value

    def _place(self, result: Any) -> Any:
        """Results that are large go to the host."""
        return tree_map(lambda v: _on_host(v) if isinstance(v, Tensor) and self._is_large(v) else v, result)

    def _empty_as(self, part: Tensor, shape: Sequence[int]) -> Tensor:
        """Return room on the host for a value of which `part` is a part, its dimensions in the same order in memory."""
        pinned = self.device.type == "cuda" and torch.cuda.is_available()
        order = sorted(range(len(shape)), key=part.stride, reverse=True)
        room = torch.empty([shape[dim] for dim in order], dtype=part.dtype, device="cpu", pin_memory=pinned)
        return room.permute([order.index(dim) for dim in range(len(shape))])

    # ways to run an operation

    def _whole(self, func: Any, args: Any, kwargs: Any) -> Any:
        if _writes(func) or not any(self._away(v) for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)):
            return self._place(func(*args, **kwargs))
        return self._place(func(*tree_map(self._in, args), **tree_map(self._in, kwargs)))

    def _move(self, func: Any, args: Any, kwargs: Any) -> Any:
        values = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        if not any(map(self._away, values)) and sum(map(_num_bytes, values)) <= self.kept:
            return func(*args, **kwargs)
        if _writes(func):
            return func(*args, **kwargs)  # a copy between the two
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        host = tree_map(lambda v: _on_host(v) if isinstance(v, Tensor) else v, args)
        found = func(*host, **kwargs)
        return found if self._is_large(found) else self._in(found)

    def _pointwise(self, func: Any, args: Any, kwargs: Any, reduces: Sequence[int]) -> Any:
        values = [v for v in tree_leaves(args) if isinstance(v, Tensor)]
        shape = torch.broadcast_shapes(*(v.shape for v in values))
        dtype = kwargs.get("dtype") or _result_dtype(values)
        size = math.prod(shape) * dtype.itemsize
        taken = sum(_num_bytes(v) for v in values if v.ndim) + (0 if reduces else size)
        if taken <= self.limit:
            return self._whole_in_place(func, args, kwargs) if _writes(func) else self._whole(func, args, kwargs)
        reduced = [dim % len(shape) for dim in reduces]
        largest = max(values, key=_num_bytes)
        free = [dim for dim in range(len(shape)) if dim not in reduced and shape[dim] > 1 and _spans(largest, shape)]
        if not free:
            return self._whole(func, args, kwargs)
        dim = max(free, key=lambda dim: largest.stride(dim) if largest.shape == shape else -dim)
        rows = max(1, int(self.limit / taken * shape[dim]))

        def part(start: int, count: int) -> Any:
            cut = [_cut(v, dim - len(shape), shape[dim], start, count) for v in values]
            found = iter(map(self._in, cut))
            return func(*tree_map(lambda v: next(found) if isinstance(v, Tensor) else v, args), **kwargs)

        if _writes(func):
            return self._filled(args[0], dim, shape[dim], rows, part)
        return self._made(dim, shape[dim], rows, part)

    def _whole_in_place(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        target: Tensor = args[0]
        if target.device.type == self.device.type:
            return func(target, *tree_map(self._in, args[1:]), **kwargs)  # type: ignore[no-any-return]
        target.copy_(func(self._in(target), *tree_map(self._in, args[1:]), **kwargs))
        return target

    def _convolution(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, weight, bias, stride, padding, dilation, transposed, *rest = args
        height, (reach, pad) = x.shape[-2], (weight.shape[-2], padding[-2] if len(padding) > 1 else 0)
        sizes = [(x.shape[2 + k] + 2 * padding[k] - weight.shape[2 + k]) // stride[k] + 1 for k in range(len(stride))]
        taken = _num_bytes(x) + x.shape[0] * weight.shape[0] * math.prod(sizes) * x.element_size()
        plain = not transposed and len(stride) > 1 and dilation[-2] == 1
        if taken <= self.limit or not plain:
            return self._whole(func, args, kwargs)
        step = stride[-2]
        out_rows = (height + 2 * pad - reach) // step + 1
        others = [*padding[:-2], 0, padding[-1]]

        def part(start: int, count: int) -> Tensor:
            first, last = start * step - pad, (start + count - 1) * step - pad + reach
            rows = self._in(x.narrow(-2, max(first, 0), min(last, height) - max(first, 0)))
            if first < 0 or last > height:
                rows = functional.pad(rows, (0, 0, max(-first, 0), max(last - height, 0)))
            found: Tensor = func(rows, weight, bias, stride, others, dilation, transposed, *rest)
            return found

        rows = max(1, int(self.limit / taken * out_rows))
        return self._made(x.ndim - 2, out_rows, rows, part)

    def _group_norm(self, func: Any, args: Any) -> Any:
        x, weight, bias, num, channels, area, groups, eps = args
        taken = 2 * _num_bytes(x)
        if taken <= self.limit:
            return self._whole(func, args, {})
        each = channels // groups

        def part(start: int, count: int) -> Tensor:
            rows = slice(start * each, (start + count) * each)
            scale, shift = (None if v is None else v[rows] for v in (weight, bias))
            values = self._in(x[:, rows]).contiguous()
            found: Tensor = func(values, scale, shift, num, count * each, area, count, eps)[0]
            return found

        made = self._made(1, groups, max(1, int(self.limit / taken * groups)), part, each)
        return made, None, None

    def _enlarge(self, packet: Any, func: Any, args: Any, kwargs: Any) -> Any:
        x, size, scales = args[0], args[1], [s for v in args[2:] for s in (v if isinstance(v, list) else [v])]
        times = [int(s) for s in scales] if size is None else [a // b for a, b in zip(size, x.shape[-2:], strict=True)]
        taken = _num_bytes(x) * (1 + math.prod(times))
        if taken <= self.limit:
            return self._whole(func, args, kwargs)

        def part(start: int, count: int) -> Tensor:
            rows = self._in(x.narrow(-2, start, count))
            shape = [count * times[0], x.shape[-1] * times[1]]
            found: Tensor = packet.default(rows, shape, float(times[0]), float(times[1]))
            return found

        rows = max(1, int(self.limit / taken * x.shape[-2]))
        return self._made(x.ndim - 2, x.shape[-2], rows, part, times[0])

    def _made(self, dim: int, size: int, rows: int, part: Callable[[int, int], Tensor], times: int = 1) -> Tensor:
        """Return what the parts make along `dim`, on the host unless it is small; each row becomes `times`."""
        made: Tensor | None = None
        for start, count in _steps(size, rows):
            found = part(start, count)
            if made is None:
                shape = list(found.shape)
                at = dim if len(shape) > dim else len(shape) - 1
                shape[at] = size * times
                made = self._empty_as(found, shape)
            made.narrow(at, start * times, count * times).copy_(found)
            del found
        assert made is not None
        return made if self._is_large(made) else self._in(made)

    def _filled(self, target: Tensor, dim: int, size: int, rows: int, part: Callable[[int, int], Tensor]) -> Tensor:
        for start, count in _steps(size, rows):
            target.narrow(dim, start, count).copy_(part(start, count))
        return target


def _steps(size: int, rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(rows, size - start)) for start in range(0, size, rows))


def _num_bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _result_dtype(values: Sequence[Tensor]) -> torch.dtype:
    dims = max(v.ndim for v in values)
    dtype = next(v.dtype for v in values if v.ndim == dims)
    for value in values:
        if value.ndim:
            dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def _spans(value: Tensor, shape: Sequence[int]) -> bool:
    return value.ndim == len(shape)


def _cut(value: Tensor, dim: int, size: int, start: int, count: int) -> Tensor:
    """Return the part along `dim`, counted from the end, of a value that is not broadcast along it."""
    if value.ndim < -dim or value.shape[dim] != size or size == 1:
        return value
    return value.narrow(dim, start, count)


def _on_host(value: Tensor) -> Tensor:
    """Return a value on the host; one that is repeated by its strides is sent once."""
    if value.device.type == "cpu":
        return value
    once = value
    for dim, stride in enumerate(value.stride()):
        if stride == 0:
            once = once.narrow(dim, 0, 1)
    return once.to("cpu").expand(value.shape)


def _reduced(packet: Any, args: Any, kwargs: Any) -> Sequence[int] | None:
    """Return the dimensions that a reduction sums over and keeps; None where it keeps none, or sums over all."""
    place = 2 if packet is aten.linalg_vector_norm else 1
    dims = args[place] if len(args) > place else kwargs.get("dim")
    keeps = args[place + 1] if len(args) > place + 1 else kwargs.get("keepdim", False)
    return dims if dims and keeps else None


def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _writes(func: Any) -> bool:
    return any(value.alias_info is not None and value.alias_info.is_write for value in func._schema.arguments)
