"""A loss with its gradients by name, and what is launched to get them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = ("detach", "view", "alias")  # operations that launch nothing


def loss_and_gradients(
    loss: Callable[..., Tensor], inputs: Mapping[str, Tensor], varied: Sequence[str]
) -> dict[str, Tensor]:
    """Return "loss" and "gradient of NAME"; each sample's loss has a factor of its own on the way back."""
    leaves = {name: value.detach().clone().requires_grad_(name in varied) for name, value in inputs.items()}
    rows = loss(**leaves)
    factors = torch.linspace(1, 2, len(rows), dtype=rows.dtype)
    found = torch.autograd.grad(rows, [leaves[name] for name in varied], factors)
    return {"loss": rows.detach()} | {f"gradient of {n}": g for n, g in zip(varied, found, strict=True)}


def kept_in(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """Where a loss rounds: derivatives are kept in the dtype of their input, all else is float32."""
    return lambda name: torch.float32 if name == "loss" else dtype


@contextmanager
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the names of what is launched inside: interpreted kernels, and operations of torch but views."""
    from triton.runtime.interpreter import InterpretedFunction

    names: list[str] = []
    run = InterpretedFunction.run

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        names.append(self.fn.__name__)
        return run(self, *args, **options)

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(function)
            if not name.startswith("ddx.") and name.split(".")[1] not in VIEWS:
                names.append(name)
            return function(*args, **(kwargs or {}))

    with monkeypatch.context() as patch, Counted():
        patch.setattr(InterpretedFunction, "run", counted)
        yield names
