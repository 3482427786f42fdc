"""What public reference implementations gave, as the tests of `methods/vectors` read it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.methods.base import Batch, Method, Turn
from ddx.process import VPProcess
from toys import Toy

VECTORS = Path(__file__).parent / "methods" / "vectors"
TOLERANCE = 1e-6  # relative; a few of a method's numbers, such as fed guidance, pass through float32


@cache
def read(method: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / f"{method}.json").read_text())["cases"]
    return found


def cases(method: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", sorted(read(method)))


class Case:
    """One case of a file, its numbers as float64 tensors."""

    def __init__(self, method: str, name: str) -> None:
        case = read(method)[name]
        self.settings, self._networks, self._given = case["settings"], case["networks"], case["given"]
        self.inputs = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["inputs"].items()}

    def toy(self, network: str, **takes: Any) -> Toy:
        return Toy(self._networks[network], **takes)

    def raw(self, network: str) -> Any:
        return self._networks[network]

    def raw_given(self, name: str) -> Any:
        return self._given[name]

    def holds(self, loss: Tensor, network: Toy, *, of: str = "loss", gradient: str = "gradient") -> None:
        """The loss and its gradient by the network's weights are those that were given."""
        given = {"loss": self._given[of], **self._given[gradient]}
        for key, value in {"loss": loss, **network.gradients(loss)}.items():
            agree(value, given[key], key)

    def agrees(self, value: Tensor, given: str) -> None:
        """A single number or gradient is the one that was given."""
        agree(value, self._given[given], given)


def agree(value: Tensor, given: Any, what: str) -> None:
    wanted = torch.tensor(given, dtype=torch.float64)
    assert value.dtype == torch.float64, f"{what} was not computed in float64"
    off, length = float((value.detach() - wanted).norm()), float(wanted.norm())
    assert off <= TOLERANCE * length, f"{what}, {length:.3g} long, is off by {off:.1e}"


def loss_of(name: str, method: Method, batch: Batch, networks: dict[str, Any]) -> Tensor:
    """The rows' losses of the network `name` in a turn of its own."""
    return method.losses(Turn(trains=(name,)), batch, networks).by_network[name]


def stable_diffusion() -> VPProcess:
    """The table of Stable Diffusion."""
    return VPProcess(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
