"""From trained weights to a plain diffusers pipeline that needs nothing of ddx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddx.methods.base import Method
from ddx.networks.lora import is_lora
from ddx.networks.lora_files import write_lora_files

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_student(
    method: Method, student: nn.Module, folder: Path, dtype_name: str, computed_in: torch.dtype
) -> dict[str, Any]:
    """Write the pipeline into `folder`, and return what a reader of the folder must know.

    A student whose weights depend on the number of steps is written once for each: that of the first into `folder`, the
    others into `steps-<n>` inside. `dtype_name` "auto" saves it in the dtype that it computed in. A low-rank student's
    files for other programs lie beside each pipeline, see :mod:`ddx.networks.lora_files`.
    """
    dtype = computed_in if dtype_name == "auto" else _DTYPES[dtype_name]
    folders = {n: f"steps-{n}" if position else "." for position, n in enumerate(method.folded_steps)}
    for num_steps, name in (folders or {1: "."}).items():
        plain = method.plain_network(student, num_steps)
        if is_lora(student):
            write_lora_files(method.teacher, student, plain, folder / name, dtype)
        method.teacher.save_student(folder / name, plain, dtype=dtype, sampler=method.sampler)
    return {"step_folders": {str(n): name for n, name in folders.items()}} if folders else {}
