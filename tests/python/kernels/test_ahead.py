"""Every kernel and launch configuration compiles for the GPUs that ddx is written for, without spilling registers.

In a process of its own: the tests' own kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import json, sys
from dataclasses import asdict
import torch
from ddx.bench.ahead import compile_cases
from ddx.bench.case import Size
from ddx.bench.operations import all_cases

capability, dtype, candidates = int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3] == "candidates"
found = compile_cases(all_cases(Size(batch=2)), capability=capability, dtype=dtype, candidates=candidates)
print(json.dumps([asdict(entry) for entry in found]))
"""

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of a program: a KiB less than a multiprocessor has
REGISTERS = 255  # of a thread; more do not exist, and what does not fit is spilled


@pytest.mark.parametrize(
    ("capability", "dtype", "selection"),
    [
        pytest.param(90, "bfloat16", "defaults", marks=pytest.mark.short),
        # the wider dtype on the smaller GPU: what takes the most registers where there is the least shared memory
        pytest.param(80, "float32", "defaults", marks=pytest.mark.slow),  # a minute
        pytest.param(90, "bfloat16", "candidates", marks=pytest.mark.slow),  # some hundred compilations
    ],
)
def test_no_kernel_spills(capability: int, dtype: str, selection: str, compiled_kernels: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability), dtype, selection],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    compiled = json.loads(done.stdout)
    assert {entry["target"] for entry in compiled} == {f"sm_{capability}"}
    for entry in compiled:
        assert entry["local_bytes"] == 0, f"spills: {entry}"
        assert 0 < entry["registers"] <= REGISTERS, entry
        assert entry["shared_bytes"] <= SHARED_BYTES[capability], entry
