"""Makers of students with random weights: complete folders, as `ddx distill` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddx.run_record import versions, write_run
from ddx.teachers.base import Teacher
from ddx.teachers.families.table import open_teacher
from ddx.teachers.hub import local_source
from ddx.teachers.registry import load_teacher
from pipelines import make_sana, make_stable_diffusion


def opened(student: Path) -> Teacher:
    """A student's own pipeline behind the contract of teachers, to compute with its network."""
    return open_teacher(local_source(student), device="cpu", dtype=None, resolution=None)


KINDS = ("flow", "eps", "v")


def make_student(
    kind: str, folder: Path, *, dtype: torch.dtype = torch.float32, layers: int = 2, **record: Any
) -> Path:
    """A student in `folder` of a tiny random teacher (beside it, in `<folder>-teacher`); returns `folder`."""
    teacher_folder = folder.with_name(f"{folder.name}-teacher")
    if kind == "flow":
        make_sana(teacher_folder, layers=layers)
    else:
        make_stable_diffusion(teacher_folder, "epsilon" if kind == "eps" else "v_prediction")
    teacher = load_teacher(teacher_folder)
    teacher.save_student(folder, teacher.new_student_network(), dtype=dtype)
    facts = {
        "kind": "student",
        "teacher": str(teacher_folder),
        "teacher_source": teacher.source,
        "teacher_revision": teacher.revision,
        "teacher_licence": "Apache-2.0",
        "method": "lcm",
        "resolution": 64,
        "store": "runs/data/pairs-tiny-64.zarr",
        "images_seen": 12_800,
        "seconds": 61.5,
        "seed": 3,
        "guidance": 4.5,
        "versions": versions(),
    }
    write_run(folder, {**facts, **record}, finished=True)
    return folder
