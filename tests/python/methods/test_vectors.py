"""ddx's losses against what public reference implementations gave, number for number.

Each file in ``vectors/`` says which code was run (`source`), on which weights, latents and random numbers, and what loss
and which gradient it returned. Here the method's own `losses` sees the same. Where the two differ by design, by a
factor or a weight, the test states the difference and applies it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.methods.base import STUDENT, Batch, Losses, Method, Turn
from ddx.methods.ect import ECT, ECTConfig
from ddx.methods.lcm import LCM, LCMConfig
from ddx.process import EDMProcess, VPProcess
from toys import Recorded, Toy, ToyTeacher, toy_batch

torch.set_num_threads(1)
VECTORS = Path(__file__).parent / "vectors"
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

    def holds(self, loss: Tensor, network: Toy, *, of: str = "loss", gradient: str = "gradient") -> None:
        """The loss and its gradient by the network's weights are those that were given."""
        given = {"loss": self._given[of], **self._given[gradient]}
        for key, value in {"loss": loss, **network.gradients(loss)}.items():
            agree(value, given[key], key)

    def given(self, name: str) -> Tensor:
        return torch.tensor(self._given[name], dtype=torch.float64)


def agree(value: Tensor, given: Any, what: str) -> None:
    wanted = torch.tensor(given, dtype=torch.float64)
    assert value.dtype == torch.float64, f"{what} was not computed in float64"
    off = float((value.detach() - wanted).norm() / wanted.norm())
    assert off < TOLERANCE, f"{what} is off by {off:.1e} of its length"


def of_student(method: Method[Any], batch: Batch, networks: dict[str, Any]) -> Losses:
    return method.losses(Turn(trains=(STUDENT,)), batch, networks)


def stable_diffusion() -> VPProcess:
    """The table of Stable Diffusion."""
    return VPProcess(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)


@cases("lcm")
def test_lcm(name: str) -> None:
    case = Case("lcm", name)
    data, settings = case.inputs, case.settings
    teacher = ToyTeacher(case.toy("teacher"), stable_diffusion(), settings["prediction"], lambda t: t / 1000.0)
    # the paper's w leaves the conditional prediction as it is at 0, a guidance scale at 1
    low, high = settings["w_min"] + 1.0, settings["w_max"] + 1.0
    method = LCM(LCMConfig(guidance_min=low, guidance_max=high, loss=settings["loss"]), teacher)
    position = (data["index"] + 0.5) / 50
    draws = Recorded(uniforms=[position, data["u_guidance"]], normals=[data["noise"]])
    student, target = (case.toy(network, takes=["guidance"]) for network in ("student", "target"))
    batch = toy_batch(teacher, data["latents"], data["classes"], draws)
    found = of_student(method, batch, {"student": student, "target": target})
    case.holds(found.by_network[STUDENT].mean(), student)


@cases("ect")
def test_ect(name: str) -> None:
    case = Case("ect", name)
    data, stage, c = case.inputs, case.settings["stage"], case.settings["c"]
    # its data have a standard deviation of 0.5, and so its noise levels are half of ddx's
    student = case.toy("student")
    teacher = ToyTeacher(case.toy("student"), EDMProcess(), "x0", lambda t: (t / 2.0).log() / 4.0, scale=2.0)
    root = data["noise"][0].numel() ** 0.5  # its distance is of a sum, ddx's of a mean
    method = ECT(ECTConfig(huber_c=max(2.0 * c / root, 1e-9)), teacher)
    uniform = torch.special.ndtr(data["normal"])
    draws = Recorded(uniforms=[uniform, uniform], normals=[data["noise"]])
    batch = toy_batch(teacher, 2.0 * data["images"], data["classes"], draws, progress=(stage + 0.5) / 8)
    found = of_student(method, batch, {"student": student}).by_network[STUDENT]
    case.holds(root * found.mean(), student)
