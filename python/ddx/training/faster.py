"""`--compile` and `--cuda-graphs`: what is on in a run, and why something is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from ddx.methods.base import Method
from ddx.training.config import DistillConfig
from ddx.training.graphs import why_no_graphs


def why_not_compiled(method: Method, device: torch.device, *, spread: bool = False) -> str | None:
    """Return why the blocks of the networks are not compiled, None if they are."""
    if spread:
        return "weights are spread over processes, and a block gathers them when it is called"
    if hasattr(method.config, "jvp"):
        return "the method takes a forward-mode derivative of its network, which compiled code has none of"
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler on a processor, and there is no {compiler}"
    return None


def what_is_on(
    config: DistillConfig, method: Method, device: torch.device, world: int, *, spread: bool = False
) -> dict[str, str]:
    """Return "on", or "off: " and why, of each setting that the user switched on."""
    asked = {
        "compile": (config.compile, lambda: why_not_compiled(method, device, spread=spread)),
        "cuda_graphs": (config.cuda_graphs, lambda: why_no_graphs(config, method, device, world)),
    }
    reasons = {name: why() for name, (wanted, why) in asked.items() if wanted}
    return {name: "on" if reason is None else f"off: {reason}" for name, reason in reasons.items()}


def compile_blocks(method: Method, networks: Iterable[nn.Module]) -> None:
    """Let torch compile the blocks of those networks that are of the teacher's class, in place, when they are first
    called. Blocks are alike, so one compilation serves all; what is around them, where numbers are fed, stays as it is.
    """
    teacher = method.teacher
    for network in networks:
        if type(network) is type(teacher.network()):
            for name in teacher.feature_blocks:
                for block in network.get_submodule(name).children():
                    block.compile()


def recomputation(network: nn.Module) -> Callable[..., Any] | None:
    """Return how a network of diffusers is to compute a block again in the backward pass; None is its own way.

    Without dropout no random state need be kept, which takes the host's time and which a CUDA graph does not allow.
    """
    drops = any(isinstance(module, nn.Dropout) and module.p > 0.0 for module in network.modules())
    return None if drops else _again


def _again(block: nn.Module, *inputs: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(block.__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
