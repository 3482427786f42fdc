"""Which path an operation takes: its Triton kernel or its torch reference, decided once for each device.

`DDX_KERNELS=auto` (the default) takes Triton on CUDA devices and torch elsewhere; `triton` and `torch` force one.
With `DDX_KERNELS=torch` every result is plain torch's, bit for bit what diffusers computes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["triton", "torch"]

CHOICES = ("auto", "triton", "torch")


def requested() -> str:
    """The value of `DDX_KERNELS`; ValueError when it is none of auto, triton, torch."""
    choice = os.environ.get("DDX_KERNELS", "auto").strip().lower() or "auto"
    if choice not in CHOICES:
        raise ValueError(f"DDX_KERNELS={choice!r}: it must be one of {', '.join(CHOICES)}")
    return choice


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, which works on a CPU (slowly, for tests)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def backend(device_type: str) -> Backend:
    """The path for tensors on ``device_type`` ("cpu", "cuda", ...). The answer never changes within a process.

    Raises RuntimeError when `DDX_KERNELS=triton` asks for what this machine cannot do.
    """
    choice = requested()
    if choice == "torch":
        return "torch"
    runs = has_triton() and (device_type == "cuda" or interpreted())
    if choice == "triton" and not runs:
        raise RuntimeError(
            f"DDX_KERNELS=triton, but Triton cannot run on {device_type} here"
            + ("" if has_triton() else ": it is not installed")
        )
    return "triton" if runs and (device_type == "cuda" or choice == "triton") else "torch"


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors goes to the kernel; otherwise the reference in plain torch computes it.

    The reference takes float64, which is for checking, and every call under a forward-mode derivative: a custom
    operation would drop the tangents there, the reference has the right ones. An operation's entry asks before
    each call, and also while `torch.compile` traces it.
    """
    if in_forward_ad():
        return False
    device = ""
    for tensor in tensors:
        if tensor is not None:
            if tensor.dtype == torch.float64:
                return False
            device = device or tensor.device.type
    chosen: Backend = _backend_while_traced(device)
    return chosen == "triton"


def _backend_while_traced(device_type: str) -> Backend:
    return backend(device_type)


# `torch.compiler.assume_constant_result` sets this mark and nothing else, but imports all of torch._dynamo to do so.
_backend_while_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


def in_forward_ad() -> bool:
    """Whether a forward-mode derivative (``torch.func.jvp``, dual numbers) is being taken.

    A custom operation would then drop the tangents without an error, so an operation's entry asks first. This holds
    inside `torch.compile(torch.func.jvp(...))` too.
    """
    return torch.autograd.forward_ad._current_level >= 0


def reason(device_type: str) -> str:
    """Why tensors on ``device_type`` take their path, in a few words."""
    if requested() != "auto":
        return f"DDX_KERNELS={requested()}"
    if not has_triton():
        return "Triton is not installed"
    return "auto: a GPU that Triton compiles for" if device_type == "cuda" else "auto: Triton is for GPUs"


def describe() -> dict[str, str]:
    """What `ddx doctor` prints: the request, what is installed, and the path that each device takes, and why."""
    lines = {"DDX_KERNELS": requested(), "triton": "not installed"}
    if has_triton():
        import triton

        lines["triton"] = str(triton.__version__) + (" (interpreter)" if interpreted() else "")
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        try:
            lines[device] = f"{backend(device)} ({reason(device)})"
        except RuntimeError as error:
            lines[device] = f"error: {error}"
    return lines
