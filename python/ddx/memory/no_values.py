"""Where the code of a run works on tensors without data, torch's fake ones, and nothing asks them for values."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from ddx.kernels import cpu_bfloat16, dispatch
from ddx.memory.cuda_casts import cuda_casts
from ddx.process import base
from ddx.teachers.components import without_weights

# what gives new weights their values, which nobody sees here
_FILLS = tuple(name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_"))

# They keep torch's functions of nn.init at their import, and put them back whenever they have loaded a network.
# Imported where these leave weights as they are, they would put back that: later networks would begin with garbage.
_KEEPERS = ("diffusers.models.modeling_utils", "transformers.initialization")


def _leave(value: Tensor, *_: Any, **__: Any) -> Tensor:
    return value


@contextmanager
def no_values(*, fused: bool) -> Iterator[None]:
    """Within, new tensors have shapes and no data, networks come from their configs, and autocast is CUDA's.

    fused: whether operations take their kernels' path, as on a GPU, or torch's. Tensors from outside, such as a
    teacher's tables of times, may be used.
    """
    for module in _KEEPERS:
        with suppress(ModuleNotFoundError):  # transformers before 5 keeps nothing
            importlib.import_module(module)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # an address is the key of a cache; nothing is read there
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")  # torch's own, at an import
        stack.enter_context(without_weights())
        stack.enter_context(mock.patch.object(dispatch, "backend", lambda device: "triton" if fused else "torch"))
        stack.enter_context(mock.patch.object(cpu_bfloat16, "mode", nullcontext))
        stack.enter_context(mock.patch.object(base, "refuse_undefined", lambda *_: None))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        for name in _FILLS:
            stack.enter_context(mock.patch.object(nn.init, name, _leave))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(cuda_casts())
        yield


@contextmanager
def lengths(tokens: int) -> Iterator[None]:
    """Let networks read how long their captions are, which is all that one asks: each has `tokens`."""
    with mock.patch.object(FakeTensor, "tolist", lambda self: [tokens] * len(self)):
        yield


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What `nn.Module._apply` does, with new parameters: torch swaps fake ones, and weak references forbid that."""
    for child in module.children() if recurse else ():
        _apply(child, function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(function(parameter.data), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module
