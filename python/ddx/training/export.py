"""From trained weights to a plain diffusers pipeline that needs nothing of ddx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddx.methods.base import Method

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_student(
    method: Method[Any], student: nn.Module, folder: Path, dtype_name: str, computed_in: torch.dtype
) -> None:
    """Write the pipeline into `folder`. `dtype_name` "auto" saves the student in the dtype that it computed in."""
    dtype = computed_in if dtype_name == "auto" else _DTYPES[dtype_name]
    method.teacher.save_student(folder, method.plain_network(student), dtype=dtype)
