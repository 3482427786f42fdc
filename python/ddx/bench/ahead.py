"""Compiles every kernel for a GPU that need not be there, and tells registers, shared memory and spills.

    python -m ddx.bench.ahead 90 bfloat16 rms_norm      # a row a kernel as JSON; all operations when none is named

The operations themselves are called, at real widths and on this machine's memory, with Triton's launch replaced by its
compilation: what is compiled is what a GPU would run, specialised as it would be.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddx.bench.calls import launches_asked, prepare
from ddx.bench.case import Case, Size
from ddx.bench.operations import chosen_cases
from ddx.errors import DdxError
from ddx.kernels import dispatch
from ddx.kernels.launch import LAUNCHES, Constants, Kernel

SIZE = Size(batch=2)  # the widths of the real model, which decide what is compiled; the batch does not


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel as the assembler left it. `local_bytes` is what a thread spills or keeps outside of registers.

    `resident` is how many programs the GPU holds at once, which a launch of no more than these runs in one round;
    None for a GPU whose limits are not listed here.
    """

    operation: str
    kernel: str
    target: str
    dtype: str
    options: str
    registers: int
    shared_bytes: int
    local_bytes: int
    resident: int | None


@dataclass(frozen=True)
class Multiprocessor:
    """What the programs on one multiprocessor share (CUDA C++ programming guide, technical specifications)."""

    number: int  # on the GPU meant: an H200, an A100
    shared_bytes: int
    threads: int
    programs: int = 32
    registers: int = 65536

    def resident(self, registers: int, shared_bytes: int, num_warps: int) -> int:
        """How many programs the whole GPU holds.

        Each of four quarters gives a warp its registers by 256; a program reserves 1 KiB of shared memory.
        """
        warps = 4 * (self.registers // 4 // (256 * -(-registers * 32 // 256)))
        by_registers = warps // num_warps
        by_memory = self.shared_bytes // (shared_bytes + 1024)
        return self.number * min(by_registers, by_memory, self.threads // (32 * num_warps), self.programs)


MULTIPROCESSORS = {
    90: Multiprocessor(number=132, shared_bytes=228 * 1024, threads=2048),
    80: Multiprocessor(number=108, shared_bytes=164 * 1024, threads=2048),
}


def compile_cases(
    cases: Sequence[Case], *, capability: int, dtype: torch.dtype = torch.bfloat16, candidates: bool = False
) -> list[Compiled]:
    """Compile the kernels of `cases` for `sm_<capability>`, and with `candidates` every launch that tuning may choose.

    Must run in a process where TRITON_INTERPRET was not set when the kernels were imported; raises RuntimeError
    otherwise.
    """
    if dispatch.interpreted():
        raise RuntimeError("kernels that are interpreted cannot be compiled: unset TRITON_INTERPRET")
    found: list[Compiled] = []
    for case in cases:
        with launches_asked() as asked:
            found += _compile(case, capability, dtype)
        for forced in _forced_launches(asked) if candidates else ():
            with forced:
                found += _compile(case, capability, dtype)
    unique = {tuple(asdict(entry).values()): entry for entry in found}
    return list(unique.values())


def _compile(case: Case, capability: int, dtype: torch.dtype) -> list[Compiled]:
    inputs = case.inputs(torch.device("cpu"), dtype)
    with _compiling_only(capability) as kernels, _NoProducts(), torch.no_grad():
        prepare(case, case.ours, inputs, both_passes=True)()
    return [_describe(case, kernel, options, capability, dtype) for kernel, options in kernels]


def _forced_launches(names: Sequence[str]) -> Iterator[ExitStack]:
    """Yield contexts that between them force every candidate of these launches."""
    mine = [LAUNCHES[name] for name in names]
    for number in range(max((len(launch.candidates) for launch in mine), default=0)):
        stack = ExitStack()
        for launch in mine:
            if number < len(launch.candidates):
                stack.enter_context(launch.force(launch.candidates[number]))
        yield stack


class _NoProducts(TorchDispatchMode):
    """Inside, matrix products have their shapes and no values: what is compiled does not depend on them, and on a
    processor those around the kernels take a third of the time, in bfloat16.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            return func(*args, **(kwargs or {}))
        *_, left, right = args
        return left.new_zeros((*left.shape[:-1], right.shape[-1]))


class NoGpu:
    """The few things that Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        """The GPU that is compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0


@contextmanager
def _compiling_only(capability: int) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Inside, a launch compiles and returns, on the CPU's tensors too. Yields (compiled kernel, its options)."""
    from triton.runtime.driver import driver

    kernels: list[tuple[Any, dict[str, Any]]] = []

    def compile_instead(self: Kernel, grid: Any, device: torch.device, constants: Constants, *arguments: Any) -> None:
        self.function.device_caches.clear()  # they are by device, and this device has another target each time
        kernels.append((self.function.warmup(*arguments, grid=grid, **constants), constants))

    before = driver._active
    driver.set_active(NoGpu(capability))
    try:
        with (
            mock.patch.object(Kernel, "launch", compile_instead),
            mock.patch.object(dispatch, "backend", lambda device_type: "triton"),
        ):
            yield kernels
    finally:
        driver._active = before


def _describe(case: Case, kernel: Any, options: dict[str, Any], capability: int, dtype: torch.dtype) -> Compiled:
    usage = _resource_usage(kernel.asm["cubin"])
    shown = {key: value for key, value in options.items() if key.isupper() or key in ("num_warps", "num_stages")}
    shared_bytes, num_warps = int(kernel.metadata.shared), int(kernel.metadata.num_warps)
    gpu = MULTIPROCESSORS.get(capability)
    return Compiled(
        operation=f"{case.operation} {case.mode}",
        kernel=kernel.metadata.name,
        target=f"sm_{capability}",
        dtype=str(dtype).removeprefix("torch."),
        options=" ".join(f"{key}={value}" for key, value in shown.items()),
        registers=usage["REG"],
        shared_bytes=shared_bytes,
        local_bytes=usage["STACK"] + usage["LOCAL"],
        resident=None if gpu is None else gpu.resident(usage["REG"], shared_bytes, num_warps),
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """Return what `cuobjdump`, which comes with Triton, reads from a kernel: REG, STACK, LOCAL, SHARED."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def compile_table(
    capability: int, operations: Sequence[str] = (), dtype: torch.dtype = torch.bfloat16
) -> list[dict[str, Any]]:
    """Return a row a kernel of the operations (all, when none is named) with its options, registers and memory.

    Raises UsageError for an unknown operation and DdxError when something does not compile.
    """
    chosen = chosen_cases(SIZE, operations)
    if dispatch.interpreted():  # kernels are so for good once they were imported so
        return _in_a_new_process(capability, operations, dtype)
    try:
        return [asdict(entry) for entry in compile_cases(chosen, capability=capability, dtype=dtype)]
    except Exception as error:
        raise DdxError(f"a kernel does not compile for sm_{capability}: {error}", hint="--debug shows where") from error


def _in_a_new_process(capability: int, operations: Sequence[str], dtype: torch.dtype) -> list[dict[str, Any]]:
    arguments = [str(capability), str(dtype).removeprefix("torch."), *operations]
    done = subprocess.run(
        [sys.executable, "-m", "ddx.bench.ahead", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise DdxError(f"a kernel does not compile for sm_{capability}: {last}", hint="unset TRITON_INTERPRET, --debug")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(compile_table(int(sys.argv[1]), sys.argv[3:], getattr(torch, sys.argv[2]))))
