"""The count of a step's memory (`ddx distill --dry-run`) beside what torch's allocator hands out on this GPU.

    python benchmarks/memory_on_gpu.py              # ten pairs of a method and its settings, on one GPU, in minutes

Networks have random weights from the configs that ship with the package, and nothing is downloaded. Of each pair two
whole steps are taken on random latents and texts of the longest length; the peak of the second is what counts, since
the first makes the optimiser's state. `reserved` is what the allocator holds with its fragments, and `device` what is
not free beside it: together they say what `ddx.memory.plan.ALLOWANCE` must cover. The goal is a count within 10 %.

Without a GPU the bundled teacher shows that it runs, nothing is measured and nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result

from ddx.memory.fake_run import footprint
from ddx.methods.base import Batch
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.methods.registry import load_method, method_spec
from ddx.teachers.base import Teacher
from ddx.teachers.components import without_weights
from ddx.teachers.condition import Condition
from ddx.teachers.registry import configs_of
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.run import teacher_dtype
from ddx.training.trainer import Trainer

TOKENS = {"sana-600m": 300, "sana-tiny": 32, "sdxl": 77, "stable-diffusion-1.5": 77}
PAIRS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (  # teacher, method, rows of a micro-batch, settings
    ("sana-600m", "lcm", 8, {}),
    ("sana-600m", "lcm", 8, {"gradient_checkpointing": False}),
    ("sana-600m", "lcm", 4, {"resolution": 1024}),
    ("sana-600m", "lcm", 8, {"lora_rank": 64}),
    ("sana-600m", "lcm", 8, {"optimizer": "came", "ema_more": ("power:6.94",)}),
    ("sana-600m", "scm", 4, {}),
    ("sana-600m", "sid", 4, {}),
    ("sana-600m", "dmd2", 4, {}),
    ("sana-600m", "sana-sprint", 4, {}),
    ("sdxl", "lcm", 2, {"lora_rank": 64}),
)
ON_A_CPU: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("sana-tiny", "lcm", 2, {}),
    ("sana-tiny", "sid", 2, {"lora_rank": 4}),
)


def main() -> int:
    """Measure, write the result after each pair and print it; 1 where a count is off by more than 10 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="pairs that would begin later are left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    environment, began = machine(), time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for teacher, method, num_rows, settings in PAIRS if device.type == "cuda" else ON_A_CPU:
        row: dict[str, Any] = {"teacher": teacher, "method": method, "rows": num_rows, "settings": settings}
        rows.append(row)
        if time.monotonic() - began > 60.0 * arguments.minutes:
            row["failure"] = f"left out: {arguments.minutes:g} minutes are over"
        else:
            try:
                row |= compare(teacher, method, num_rows, settings, device)
            except torch.OutOfMemoryError as error:
                row["failure"] = str(error).splitlines()[0]
        print(row, flush=True)
        if device.type == "cuda":
            write_result("memory_on_gpu", {"rows": rows}, environment, arguments.out)
    return int(any(not 0.9 <= row.get("counted over measured", 1.0) <= 1.1 for row in rows))


def compare(name: str, method: str, num_rows: int, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the counted and the measured peak of a step, in bytes."""
    on_gpu = device.type == "cuda"
    values = {"batch_size": 2 * num_rows, "micro_batch_size": num_rows, "train_steps": 100, **settings}
    config = DistillConfig(method=method, teacher=name, **{**method_spec(method).method.defaults, **values})
    dtype = torch.bfloat16 if on_gpu else torch.float32
    counted = footprint(
        config,
        method_spec(method).config(),
        None,
        open_teacher(config, torch.device("cpu"), dtype),
        dtype=dtype,
        rows=num_rows,
        tokens=TOKENS[name],
        fused=on_gpu,
    ).peak
    row = {"counted_bytes": counted.num_bytes, "during": list(counted.during)}
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
    steps(config, device, dtype, num_rows)
    if not on_gpu:
        return row
    free, total = torch.cuda.mem_get_info(device)
    measured = torch.cuda.max_memory_allocated(device) - before
    return {
        **row,
        "measured_bytes": measured,
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
        "device_bytes": total - free - torch.cuda.memory_reserved(device),
        "counted over measured": round(counted.num_bytes / measured, 3),
    }


def steps(config: DistillConfig, device: torch.device, dtype: torch.dtype, num_rows: int) -> None:
    """Take two steps, and let the allocator's peak be that of the second."""
    teacher = open_teacher(config, device, dtype)
    null = text(teacher, 1, 1 if teacher.text_is_masked else TOKENS[config.teacher], device)
    with without_weights(), mock.patch.object(teacher, "null_condition", lambda: null):
        method = load_method(config.method, method_spec(config.method).config(), teacher)
        trainer = Trainer(method, config, Ranks(device=device), dtype)
        last = config.train_steps - 1
        for turn in range(2):
            if turn == 1 and device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            trainer.step(last, [batch(trainer, part, num_rows, null) for part in range(2)])
            if not all(torch.isfinite(v).all() for v in trainer.student.parameters()):
                raise ArithmeticError("a weight is not finite")


def open_teacher(config: DistillConfig, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Return the teacher of the configs in the package, with nothing loaded."""
    return configs_of(config.teacher, device=device, dtype=teacher_dtype(config, dtype), resolution=config.resolution)


def batch(trainer: Trainer, part: int, num_rows: int, null: Condition) -> Batch:
    """Return a micro-batch of random latents and texts."""
    teacher, config, device = trainer.method.teacher, trainer.config, trainer.ranks.device
    x0 = torch.randn(num_rows, *teacher.latent_shape(config.resolution), device=device)
    return Batch(
        x0=x0,
        condition=text(teacher, num_rows, TOKENS[config.teacher], device),
        null=null,
        random=RandomNumbers(0, part, range(num_rows), device),
        step=config.train_steps - 1,
        progress=1.0 - 1.0 / config.train_steps,
        noise=torch.randn_like(x0) if trainer.method.reads_pairs else None,
        neighbour=torch.randn_like(x0) if trainer.method.reads_neighbours else None,
    )


def text(teacher: Teacher, num_rows: int, tokens: int, device: torch.device) -> Condition:
    """Return random embeddings, all of whose tokens are real."""
    made = Condition(
        torch.randn(num_rows, tokens, teacher.text_width, device=device),
        torch.ones(num_rows, tokens, dtype=torch.bool, device=device),
        None if teacher.pooled_width is None else torch.randn(num_rows, teacher.pooled_width, device=device),
    )
    return dataclasses.replace(made, counts=(tokens,) * num_rows)


if __name__ == "__main__":
    sys.exit(main())
