"""What a low-rank distillation leaves for others: files for other programs, and a card that says how to use them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

import distill_runs as runs
from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE
from ddx.sampling.card import card_prompt
from ddx.sampling.config import SampleConfig
from ddx.sampling.run import sample
from ddx.sampling.student import StudentFolder
from ddx.training.prepare import prepare
from ddx.training.prepare_config import PrepareConfig
from ddx.workspace import Workspace

ADD = 'pipeline.load_lora_weights(".")\n'


@pytest.fixture(scope="module")
def student(teacher_folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps with a range of guidance, from a prepared teacher, whose network the first teacher has not."""
    workspace = tmp_path_factory.mktemp("workspace")
    settings = {"sample_every": 0, "device": "cpu", "batch_size": 4}
    config = PrepareConfig(teacher=str(teacher_folder), data=store, train_steps=1, **settings)  # type: ignore[arg-type]
    prepared = prepare(config, workspace=Workspace(workspace))
    low = {"lora_rank": 4, "lora_alpha": 32.0, "learning_rate": 0.03, "train_steps": 4, "ema_more": ("decay:0.5",)}
    return runs.run(prepared, store, workspace, guidance_min=3.0, guidance_max=6.0, **low)


def test_the_card_s_program_puts_the_file_onto_the_teacher(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (student / "README.md").read_text(encoding="utf-8")
    assert "in rank 4, at guidance 4.5 of the 3 to 6 that were trained" in text and "fuse_lora" in text
    _, program = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert "tiny-prepared" in program and "import ddx" not in program and ADD in program
    monkeypatch.chdir(student)
    pictures: list[NDArray[np.int64]] = []
    for code in (program, program.replace(ADD, "")):
        exec(compile(code, "card", "exec"), {})
        pictures.append(np.asarray(Image.open("out.png"), dtype=np.int64))
    files = StudentFolder(student)
    config = SampleConfig(student=student, prompt=(card_prompt(files),), device="cpu", out=tmp_path / "drawn")
    drawn = np.asarray(Image.open(sample(config, Workspace(tmp_path)).pictures[0].path), dtype=np.int64)
    assert np.abs(drawn - pictures[0]).max() <= 1 < np.abs(drawn - pictures[1]).max()


def test_a_further_average_has_the_files_too(student: Path) -> None:
    for name in (DIFFUSERS_FILE, COMFYUI_FILE):
        ours, theirs = load_file(student / name), load_file(student / "averages" / "decay-0.5" / name)
        assert ours.keys() == theirs.keys()
        assert any(not torch.equal(value, theirs[key]) for key, value in ours.items())
