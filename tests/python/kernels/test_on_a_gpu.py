"""What the interpreter cannot show: bfloat16, and the compiled kernels' own numbers, at the sizes of SANA-600M."""

from __future__ import annotations

import pytest
import torch

from ddx.bench.case import Case, Size
from ddx.bench.gates import gate
from ddx.bench.operations import all_cases

pytestmark = pytest.mark.gpu

CASES = all_cases(Size(batch=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=[f"{case.operation} {case.mode}" for case in CASES])
def test_a_kernel_is_no_worse_than_eager(case: Case, dtype: torch.dtype) -> None:
    verdict = gate(case, torch.device("cuda", 0), dtype, seed=0)
    assert verdict.passed, verdict.reason
