"""Runs consistency_cases.py on each path: Triton fixes its interpreter when a kernel is first imported, so each path
has a process of its own, and so has the ahead-of-time compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("consistency_cases.py")

COMPILE = """
import re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ddx.kernels.consistency import BLOCK, NUM_WARPS, _distance_kernel

capability, dtype = int(sys.argv[1]), sys.argv[2]
signature = {
    "prediction_ptr": f"*{dtype}", "target_ptr": f"*{dtype}", "weight_ptr": "*fp32", "derivative_ptr": f"*{dtype}",
    "partial_ptr": "*fp32", "num_elements": "i32", "c": "fp32",
    "HUBER": "constexpr", "WEIGHTED": "constexpr", "BLOCK": "constexpr",
}
source = ASTSource(_distance_kernel, signature, {"HUBER": True, "WEIGHTED": True, "BLOCK": BLOCK})
options = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(compiled.asm["cubin"])
    file.flush()
    usage = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
print(usage)
(stack,), (local,) = re.findall(r"STACK:(\\d+)", usage), re.findall(r"LOCAL:(\\d+)", usage)
assert stack == local == "0", usage
"""


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


@pytest.mark.parametrize("path", ["triton", "torch"])
def test_consistency_loss(path: str) -> None:
    interpret = "1" if path == "triton" else "0"
    run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)],
        DDX_KERNELS=path,
        TRITON_INTERPRET=interpret,
    )


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_the_gpu_without_spills(capability: int, tmp_path: Path) -> None:
    for dtype in ("fp32", "bf16"):
        done = run(["-c", COMPILE, str(capability), dtype], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
        assert "_distance_kernel" in done.stdout
