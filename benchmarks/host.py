"""What the host pays for the kernels: each operation called as on a GPU, down to where a launch leaves Python.

Triton finds its compiled kernels and launches nothing, tensors are tiny and on the processor, so what is left is the
host's: checks, torch's dispatcher and autograd, memory for the results, the search for the kernel. Triton's launch in C
and the driver's come on top, some microseconds a kernel. An operation forward and backward is the increase that one
more call makes to a graph with one backward pass, as in a step; beside it torch's own `x * y` the same way. Processor
time of the thread, the smallest of many runs.

The share of a step: what the operations of the blocks take on the host, against the GPU's time that the roofline model
of docs/kernels.md predicts for the same operations. Where it is over 1, launches are what the GPU waits for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result
from triton.runtime.driver import driver

from ddx.bench.ahead import NoGpu
from ddx.bench.case import Case, Size, as_tuple
from ddx.bench.operations import all_cases
from ddx.cli.console import emit, emit_table
from ddx.kernels import dispatch

TINY = Size(batch=1, side=2, heads=2, cross_heads=2, cross_head_dim=32, text_tokens=4, latent_channels=4)
MORE = 8  # calls beside the first
BLOCKS = 28
COPY = 4.3e12  # bytes a second of an H200, as docs/kernels.md assumes
# What a block of SANA calls, and how often.
OF_A_BLOCK = {
    "relu_linear_attention": 1,
    "glumbconv_mid": 1,
    "norm_modulate": 1,
    "residual_norm_modulate": 1,
    "gated_residual": 2,
}


class NullDriver(NoGpu):
    """Compiles for a GPU that is not there, loads nothing, launches nothing."""

    class utils:
        @staticmethod
        def load_binary(*_: Any) -> tuple[int, ...]:
            return 1, 1, 32, 0, 1024

        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {"max_shared_mem": 227 * 1024}

        @staticmethod
        def unload_module(module: Any) -> None:
            pass

    @staticmethod
    def launcher_cls(source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *_: None


def main() -> int:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--runs", type=int, default=1000, help="runs of which the fastest counts")
    arguments = parser.parse_args()
    if dispatch.interpreted():
        parser.error("kernels that are interpreted cost what interpreting costs: unset TRITON_INTERPRET")
    environment = machine()
    torch.set_num_threads(1)
    cases = [case for case in all_cases(TINY) if case.mode != "forward" and case.operation not in plain()]
    driver.set_active(NullDriver(90))
    with mock.patch.object(dispatch, "backend", lambda device_type: "triton"):
        rows = [measure(case, arguments.runs) for case in cases]
    result = {
        "rows": rows,
        "multiplication_us": multiplication(arguments.runs),
        "steps": [step(rows, Size(side=side)) for side in (16, 32)],
    }
    path = write_result("host", result, environment, arguments.out)
    emit_table(["operation", "", "host, µs"], [list(row.values()) for row in rows])  # type: ignore[attr-defined]
    emit(f"x * y forward and backward: {result['multiplication_us']} µs")
    for line in result["steps"]:  # type: ignore[attr-defined]
        emit(f"{line['size']}: {line['host_ms']} ms on the host, {line['gpu_ms']} ms predicted on an H200")
    emit(str(path))
    return 0


def plain() -> set[str]:
    """Operations that launch nothing of ours."""
    return {
        "dual_linear", "dual_linear cat", "qkv in one product", "1x1 convolution as linear", "key mask, broadcast",
        "no division by one",
    }  # fmt: skip


def measure(case: Case, runs: int) -> dict[str, Any]:
    """What one call takes: with its backward pass, or of a dual alone."""
    inputs = case.inputs(torch.device("cpu"), torch.bfloat16)
    if case.mode == "dual":
        with torch.no_grad():
            us = fastest(lambda: case.ours(**inputs), runs)
    else:
        us = both_passes(
            lambda leaves: as_tuple(case.ours(**{**inputs, **leaves})), {n: inputs[n] for n in case.varied}, runs
        )
    return {"operation": case.operation, "mode": "dual" if case.mode == "dual" else "fwd + bwd", "us": round(us, 1)}


def multiplication(runs: int) -> float:
    """Torch's own product of two tensors, forward and backward."""
    tensors = {"x": torch.ones(2, 4, 64), "y": torch.ones(2, 4, 64)}
    return round(both_passes(lambda leaves: (leaves["x"] * leaves["y"],), tensors, runs), 1)


def both_passes(call: Callable[..., Any], varied: dict[str, torch.Tensor], runs: int) -> float:
    """The increase by a call, each with leaves of its own, in one graph."""
    sets = [{name: value.detach().requires_grad_() for name, value in varied.items()} for _ in range(1 + MORE)]
    cotangents = [torch.ones_like(output) for output in call(sets[0]) if output.requires_grad] * (1 + MORE)

    def run(count: int) -> None:
        outputs = [output for leaves in sets[:count] for output in call(leaves) if output.requires_grad]
        asked = [leaf for leaves in sets[:count] for leaf in leaves.values()]
        torch.autograd.grad(outputs, asked, cotangents[: len(outputs)])

    return (fastest(lambda: run(1 + MORE), runs) - fastest(lambda: run(1), runs)) / MORE


def fastest(call: Callable[[], Any], runs: int) -> float:
    """Microseconds of the thread's processor time."""
    for _ in range(20):
        call()
    found = []
    for _ in range(runs):
        began = time.thread_time_ns()
        call()
        found.append(time.thread_time_ns() - began)
    return min(found) / 1000


def step(rows: list[dict[str, Any]], size: Size) -> dict[str, Any]:
    """The blocks' own operations in one forward and backward pass, on the host and as bytes on the GPU."""
    host = {row["operation"]: row["us"] for row in rows if row["mode"] != "dual"}
    moved: dict[str, int] = {}
    for case in all_cases(size):
        if case.mode != "dual" and case.operation in OF_A_BLOCK:
            moved[case.operation] = moved.get(case.operation, 0) + 2 * case.moved_elements
    host_us = BLOCKS * sum(count * host[name] for name, count in OF_A_BLOCK.items())
    gpu_us = BLOCKS * sum(count * moved[name] for name, count in OF_A_BLOCK.items()) / COPY * 1e6
    return {
        "size": str(size),
        "host_ms": round(host_us / 1000, 2),
        "gpu_ms": round(gpu_us / 1000, 2),
        "host_over_gpu": round(host_us / gpu_us, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
