"""The methods that ddx knows, listed without torch; `load_method` brings one to life."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddx.errors import UsageError, nearest
from ddx.methods.config import LCMConfig

if TYPE_CHECKING:
    from ddx.methods.base import Method
    from ddx.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What one needs to know to choose a method."""

    name: str
    title: str
    paper: str
    data: str  # "images": pictures with captions; "captions": captions are enough
    networks: tuple[str, ...]  # beside the frozen teacher
    relative_cost: float  # forward passes of one network for one row of one step; a backward pass counts as two
    config: type[Any]
    implementation: str  # "module:class"


METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec(
            name="lcm",
            title="Latent consistency distillation with guidance",
            paper="Luo et al. 2023, Latent Consistency Models, arXiv:2310.04378",
            data="images",
            networks=("student", "target"),
            relative_cost=6.0,
            config=LCMConfig,
            implementation="ddx.methods.lcm:LCM",
        ),
    )
}


def method_spec(name: str) -> MethodSpec:
    """Return the spec of method `name`; UsageError with the nearest name otherwise."""
    if name in METHODS:
        return METHODS[name]
    near = nearest(name, tuple(METHODS))
    hint = f"did you mean `--method {near}`?" if near else "see `ddx list methods`; known: " + ", ".join(METHODS)
    raise UsageError(f"unknown method {name!r}", hint=hint)


def load_method(name: str, config: Any, teacher: Teacher) -> Method[Any]:
    """Return method `name` for `teacher`; `config` is an instance of its config class."""
    spec = method_spec(name)
    module, _, attribute = spec.implementation.partition(":")
    method: Method[Any] = getattr(importlib.import_module(module), attribute)(config, teacher)
    return method
