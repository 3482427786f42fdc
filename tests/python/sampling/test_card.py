"""The model card: its snippet needs diffusers alone and draws what `ddx sample` draws, bit for bit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddx.sampling.card import card_prompt, write_card
from ddx.sampling.config import SampleConfig
from ddx.sampling.run import sample
from ddx.sampling.student import StudentFolder
from ddx.workspace import Workspace
from students import make_student
from watchdog import WATCHDOG_S


@pytest.mark.parametrize(
    ("kind", "dtype", "alone"),
    [("flow", torch.float32, True), ("flow", torch.bfloat16, False), ("eps", torch.float32, False)],
    ids=str,
)
def test_the_snippet_draws_the_same_bits(
    kind: str, dtype: torch.dtype, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_student(kind, tmp_path / "student", dtype=dtype)
    text = write_card(folder).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert "ddx" not in code
    prompt = card_prompt(StudentFolder(folder))
    assert prompt in text.split("```")[0]  # the card names it

    if alone:  # a process that has nothing but what the snippet imports
        line, environment = [sys.executable, "-c", code], _environment()
        run = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=WATCHDOG_S)
        assert run.returncode == 0, run.stderr
    else:
        monkeypatch.chdir(folder)
        exec(code, {"__name__": "__main__"})
    config = SampleConfig(student=folder, prompt=(prompt,), steps=1, seed=0, device="cpu", out=tmp_path / "drawn")
    result = sample(config, Workspace(tmp_path / "runs"))
    ours, theirs = (np.asarray(Image.open(path)) for path in (result.pictures[0].path, folder / "out.png"))
    assert ours.shape == (64, 64, 3)
    np.testing.assert_array_equal(ours, theirs)


def test_the_card_says_what_the_student_is(flow_student: Path) -> None:
    text = write_card(flow_student).read_text(encoding="utf-8")
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "apache-2.0" and matter["library_name"] == "diffusers"
    for fact in ("Apache-2.0", "lcm", "pairs-tiny-64.zarr", "12,800", "| seed | 3 |", "4.5", "Not evaluated yet"):
        assert fact in text, fact


def test_scores_come_into_the_card_and_stay(tmp_path: Path) -> None:
    folder = make_student("flow", tmp_path / "student", teacher_licence="NVIDIA NSCL v2-custom")
    rows = [
        {"model": "teacher", "steps": 20, "overall": 0.91, "frechet": 0.1234, "seconds_per_image": 1.5},
        {"model": "student", "steps": 1, "overall": 0.875, "frechet": None, "seconds_per_image": 0.05},
    ]
    write_card(folder, rows)
    text = write_card(folder).read_text(encoding="utf-8")
    assert "| teacher | 20 | 0.91 | 0.123 | 1.5 |" in text
    assert "| student | 1 | 0.88 | – | 0.05 |" in text
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "other" and matter["license_name"] == "NVIDIA NSCL v2-custom"


def test_a_prompt_with_quotes_makes_valid_python(tmp_path: Path) -> None:
    prompt = 'a sign that says "it\'s open" \\ café'
    folder = make_student("flow", tmp_path / "student", validation_prompts=[prompt])
    text = write_card(folder).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(code, "card", "exec")
    assert card_prompt(StudentFolder(folder)) == prompt


def _environment() -> dict[str, str]:
    """The same number of threads as here: sums are rounded by how they are cut up."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
