"""A method beside its networks, as its loss sees them, for tests that compute the same loss by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ddx.methods.base import FAKE, STUDENT, Batch, Losses, Method, Turn
from ddx.methods.registry import load_method, method_spec
from ddx.teachers.base import Teacher

SCORE_METHODS = ("sid", "sid-lsg", "sida", "dmd2", "dmd", "decoupled-dmd", "diff-instruct", "dde")
STUDENTS_TURN, FAKES_TURN = Turn(trains=(STUDENT,)), Turn(trains=(FAKE,))


@dataclass(frozen=True)
class Run:
    method: Method
    networks: Mapping[str, nn.Module]

    def losses(self, batch: Batch, trains: str = STUDENT) -> Losses:
        return self.method.losses(Turn(trains=(trains,)), batch, self.networks)

    @property
    def student(self) -> nn.Module:
        return self.networks[STUDENT]


def make_method(name: str, teacher: Teacher, **settings: Any) -> Any:
    spec = method_spec(name)
    return load_method(name, spec.config(**settings), teacher)


def make_run(teacher: Teacher, name: str, **settings: Any) -> Run:
    """The method with networks that differ from the teacher and from each other, and whose embedders say something."""
    method: Method = make_method(name, teacher, **settings)
    networks = {}
    for number, network in enumerate(method.networks()):
        torch.manual_seed(number)
        networks[network.name] = method.build(network)
        with torch.no_grad():
            for label, parameter in networks[network.name].named_parameters():
                if "_embedder.last" in label:
                    nn.init.normal_(parameter, std=0.02)
                else:
                    parameter.mul_(1.0 + 0.01 * (number + 1))
    return Run(method, networks)
