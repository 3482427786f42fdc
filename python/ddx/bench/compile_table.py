"""What the compiler makes of every kernel, for a GPU that need not be there: registers, shared memory, spills.

    python -m ddx.bench.compile_table 90 bfloat16 rms_norm      # the rows as JSON; all operations when none is named

Kernels are interpreted for good once they were imported so, hence the process of its own in that case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ddx.bench.ahead import compile_cases
from ddx.bench.case import Size
from ddx.bench.kernels import chosen_cases
from ddx.errors import DdxError
from ddx.kernels import dispatch

SIZE = Size(batch=2)  # the widths of the real model, which decide what is compiled; the batch does not


def compile_table(
    capability: int, operations: Sequence[str] = (), dtype: torch.dtype = torch.bfloat16
) -> list[dict[str, Any]]:
    """Return a row a kernel of the operations (all, when none is named) with its options, registers and memory.

    Raises UsageError for an unknown operation and DdxError when something does not compile.
    """
    chosen = chosen_cases(SIZE, operations)
    if dispatch.interpreted():
        return _in_a_new_process(capability, operations, dtype)
    try:
        return [asdict(entry) for entry in compile_cases(chosen, capability=capability, dtype=dtype)]
    except Exception as error:
        raise DdxError(f"a kernel does not compile for sm_{capability}: {error}", hint="--debug shows where") from error


def _in_a_new_process(capability: int, operations: Sequence[str], dtype: torch.dtype) -> list[dict[str, Any]]:
    arguments = [str(capability), str(dtype).removeprefix("torch."), *operations]
    done = subprocess.run(
        [sys.executable, "-m", "ddx.bench.compile_table", *arguments],
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
