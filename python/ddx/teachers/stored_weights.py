"""Networks whose weights stay in their files, for a run in which each process holds a share of them.

A network is made of its config alone; its buffers, which may be computed and in no file, are real. Each parameter is a
:class:`StandIn` without memory, that knows where in a file its values are. Whoever spreads the network puts shares in
their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.checkpoints.shares import Spread
from ddx.errors import DdxError
from ddx.teachers.components import component_class, network_of_config
from ddx.teachers.hub import Source, read_json, variant_of, weight_files


class StandIn(nn.Parameter):
    """A parameter of the shape and dtype of one that is yet to come, on the CPU: all of it is one NaN in memory.

    stored: the values, in the dtype of the file, mapped into memory: what is not used is not read.
    """

    stored: Tensor | Spread

    def __new__(cls, stored: Tensor, dtype: torch.dtype) -> StandIn:
        """Stand in for a frozen parameter."""
        made: StandIn = super().__new__(cls, torch.full((), float("nan"), dtype=dtype).expand(stored.shape), False)
        made.stored = stored
        return made


class WeightsLater:
    """What came of the wish for stand-ins: `refused` says why networks were opened with their weights."""

    def __init__(self) -> None:
        self.refused: list[str] = []


_WISH: ContextVar[WeightsLater | None] = ContextVar("weights later", default=None)


@contextmanager
def weights_later() -> Iterator[WeightsLater]:
    """Within, denoisers are opened with stand-ins for their weights, where that can be."""
    wish = WeightsLater()
    token = _WISH.set(wish)
    try:
        yield wish
    finally:
        _WISH.reset(token)


@contextmanager
def weights_at_once(reason: str) -> Iterator[None]:
    """Within, networks are opened with their weights, also within :func:`weights_later`, which is told the reason."""
    wish = _WISH.get()
    if wish is not None:
        wish.refused.append(reason)
    token = _WISH.set(None)
    try:
        yield
    finally:
        _WISH.reset(token)


def open_later(source: Source, part: str, expected: tuple[str, ...], dtype: torch.dtype) -> nn.Module | None:
    """Return a network of the pipeline with stand-ins, frozen and in evaluation mode, as :func:`load_model` does.

    None where it is to be opened with its weights.
    """
    wish = _WISH.get()
    if wish is None:
        return None
    try:
        return _with_stand_ins(component_class(source, part, expected), source.folder / part, dtype)
    except _Refused as error:
        wish.refused.append(str(error))
        return None


def stand_ins(network: nn.Module) -> dict[str, StandIn]:
    """Return the parameters that stand in for others, by name; one that is used twice by each of its names."""
    named = network.named_parameters(remove_duplicate=False)
    return {name: value for name, value in named if isinstance(value, StandIn)}


def start_later_from(network: nn.Module, weights: Mapping[str, Tensor | Spread]) -> dict[str, Tensor | Spread]:
    """Let stand-ins stand for these weights; return those of other names."""
    others = dict(weights)
    for name, value in stand_ins(network).items():
        if name in weights:
            value.stored = others.pop(name)
    return others


class _Refused(Exception):
    """Why a network cannot be opened without its weights."""


def _with_stand_ins(loader: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    import accelerate

    if not loader.__module__.startswith("diffusers"):
        raise _Refused(f"{loader.__name__} is not of diffusers")
    if read_json(folder / "config.json").get("quantization_config") is not None:
        raise _Refused(f"the weights in {folder} are quantised")
    stored = _mapped(folder)
    with accelerate.init_empty_weights(include_buffers=False):  # a buffer that is computed is in no file
        network: Any = network_of_config(loader, folder, dtype)
    in_float32 = set(getattr(network, "_keep_in_fp32_modules", None) or ())  # diffusers' own rule
    for prefix, module in network.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            own = f"{prefix}.{name}" if prefix else name
            found = stored.get(own)
            if value is None or (found is None and not value.is_meta):
                continue
            if found is None or found.shape != value.shape:
                raise _Refused(f"{own} is not in the files of {folder} as {loader.__name__} has it")
            kind = found.dtype
            if found.is_floating_point():
                kind = torch.float32 if in_float32.intersection(own.split(".")) else dtype
            if name in module._parameters:
                module._parameters[name] = StandIn(found, kind)
            else:
                module._buffers[name] = found.to(kind, copy=True)
    network.register_to_config(_name_or_path=folder)  # as from_pretrained does
    opened: nn.Module = network
    return opened


def _mapped(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that diffusers would read, mapped into memory."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = weight_files(folder)
    variant = variant_of(files[0]) if files else None
    index = folder / f"diffusion_pytorch_model.safetensors.index{f'.{variant}' if variant else ''}.json"
    if index.is_file():
        files = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
    elif len(files) != 1:
        raise _Refused(f"{folder} has {len(files)} files of weights and no index of them")
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            found |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise DdxError(f"cannot read {file}: {error}", hint="fetch it again") from error
    return found
