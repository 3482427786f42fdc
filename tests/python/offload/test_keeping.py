"""However a pipeline is kept, it draws the same picture, bit for bit but for a decoder in parts.

The encoders run once for a prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddx.offload import keeping as module
from ddx.offload.keeping import BLOCKS, LEAVES, TURNS, Keeping
from ddx.offload.tables import HostTable, keep_tables
from ddx.sampling.pipeline import OutOfMemory, StudentPipeline
from ddx.sampling.teacher_folder import TeacherFolder
from ddx.teachers.registry import load_teacher
from tiny import NAMES, Tiny

QUICK = ("sana", "stable-diffusion", "sdxl", "z-image")
PROMPTS = ("the red cat", "", "the red cat")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return Tiny(request.param).make(tmp_path_factory.mktemp("teacher") / request.param)


def drawn(folder: Path, keeping: Keeping | None = None, prompts: Path | None = None) -> tuple[Any, StudentPipeline]:
    files = TeacherFolder(load_teacher(folder, resolution=64))
    pipeline = StudentPipeline(files, device="cpu", keeping=keeping, prompts=prompts)
    pipeline.read(PROMPTS, 2)
    pictures = pipeline.draw(PROMPTS, range(len(PROMPTS)), 2)
    return np.stack([np.asarray(picture) for picture in pictures]), pipeline


def test_the_picture_is_the_same(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "keep_tables", lambda encoder: keep_tables(encoder, least=1))
    whole, pipeline = drawn(teacher)
    networks = [part for part, value in pipeline.pipeline.components.items() if hasattr(value, "parameters")]
    encoders = [part for part in networks if part.startswith("text_encoder")]
    ways = ((TURNS, TURNS, None), (BLOCKS, LEAVES, None), (LEAVES, LEAVES, 20_000))
    for number, (denoiser, others, maps) in enumerate(ways):
        parts = {part: others if part in (*encoders, "vae") else denoiser for part in networks}
        kept, pipeline = drawn(teacher, Keeping(parts=parts, maps=maps), tmp_path / str(number))
        if maps is None:
            assert np.array_equal(kept, whole), (denoiser, others)
        else:  # sums in parts may round another way
            difference = np.abs(kept.astype(int) - whole)
            assert difference.max() <= 1 and difference.mean() < 1e-3
        texts = len(set(PROMPTS)) + (pipeline.files.call.null_prompt is not None)
        assert pipeline.cache is not None and pipeline.cache.runs == texts
        tables = [m for part in encoders for m in getattr(pipeline.pipeline, part).modules() if type(m) is HostTable]
        assert bool(tables) == (others == LEAVES)
    again, pipeline = drawn(teacher, Keeping(parts=parts), tmp_path / "0")
    assert np.array_equal(again, whole)
    assert pipeline.cache is not None and pipeline.cache.runs == 0  # read from the disk


def test_what_the_libraries_take_beside_the_count_ends_no_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Tiny("sana").make(tmp_path / "sana")
    whole, pipeline = drawn(folder)
    networks = [part for part, value in pipeline.pipeline.components.items() if hasattr(value, "parameters")]
    keeping = Keeping(parts=dict.fromkeys(networks, TURNS), limit=10**6)
    files = TeacherFolder(load_teacher(folder, resolution=64))
    pipeline = StudentPipeline(files, device="cpu", keeping=keeping)
    pipeline.read(PROMPTS, 2)
    decode, full = pipeline.pipeline.vae.decoder.forward, [True, False, False, False]

    def full_once(*args: Any, **kwargs: Any) -> Any:
        if full.pop(0):
            raise torch.OutOfMemoryError("full")
        return decode(*args, **kwargs)

    monkeypatch.setattr(pipeline.pipeline.vae.decoder, "forward", full_once)
    pictures = np.stack([np.asarray(p) for p in pipeline.draw(PROMPTS, range(len(PROMPTS)), 2)])
    assert np.array_equal(pictures, whole) and "more than 1 MB is needed" in caplog.text
    full[:] = [True]
    with pytest.raises(OutOfMemory, match="ran out of memory"):
        pipeline.draw(PROMPTS[:1], [0], 2)
