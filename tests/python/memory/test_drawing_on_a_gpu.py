"""A drawing within little memory on a real GPU: its peak is the counted one, and its picture the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddx.memory.draw_count import DrawCounter
from ddx.memory.draw_plan import WORKSPACE, DrawPlan, fit
from ddx.memory.fake_gpu import GPU
from ddx.sampling.pipeline import StudentPipeline
from ddx.sampling.teacher_folder import TeacherFolder
from ddx.teachers.families.table import open_teacher
from ddx.teachers.hub import local_source
from ddx.teachers.registry import load_teacher
from pipelines import make_sana_600m

pytestmark = pytest.mark.gpu
PROMPTS = ("a red circle", "a blue square")


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana_600m(tmp_path_factory.mktemp("sana") / "600m")


def drawn(folder: Path, plan: DrawPlan | None) -> tuple[Any, int]:
    """The pictures, and the peak of the allocator while they were drawn."""
    files = TeacherFolder(load_teacher(folder, dtype="bf16"))
    pipeline = StudentPipeline(files, device="cuda", keeping=None if plan is None else plan.keeping)
    torch.cuda.reset_peak_memory_stats()
    pipeline.read(PROMPTS, 2)
    pictures = pipeline.draw(PROMPTS, (0, 1), 2)
    return np.stack([np.asarray(picture) for picture in pictures]), torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("num_bytes", [400 * 10**6, 10**9, 2 * 10**9])
def test_it_takes_what_was_counted_and_draws_the_same(
    sana: Path, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDX_KERNELS", "torch")
    teacher = open_teacher(local_source(sana), device=GPU, dtype="bf16", default_resolution=512)
    plan = fit(DrawCounter(teacher, guided=True, size=512), num_bytes, lambda _: None)
    whole, _ = drawn(sana, None)
    torch.cuda.empty_cache()
    kept, peak = drawn(sana, plan)
    assert peak <= num_bytes
    assert peak == pytest.approx(plan.peak, rel=0.1, abs=WORKSPACE)
    difference = np.abs(kept.astype(int) - whole)
    if plan.keeping.maps is None:
        assert difference.max() == 0
    else:  # a convolution in parts may round another way
        assert difference.max() <= 2 and difference.mean() < 0.05
