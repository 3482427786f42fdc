"""The three lines of the README, literally, offline, with sana-600m in the hub cache; and without it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddx.cli import main
from ddx.teachers.registry import TEACHERS
from pipelines import fill_hub_cache, make_sana
from watchdog import WATCHDOG_S

Shell = Callable[..., subprocess.CompletedProcess[str]]

LINES = (
    "ddx precompute laion.parquet",
    "ddx distill --method lcm --teacher sana-600m",
    "ddx sample --steps 1",
)

# What a user may put into a workspace; here it makes the run short and lets the pictures come from this machine.
WORKSPACE_DEFAULTS = f"""\
precompute:
  allow_private_hosts: true
  idle_timeout_s: {WATCHDOG_S}
  total_timeout_s: {WATCHDOG_S}
  batch_size: 2
distill:
  train_steps: 3
  batch_size: 2
sample:
  num_images: 1
"""


def write_laion(path: Path, folder: Path, url: str) -> None:
    """Six pictures behind URLs in LAION's columns, one of them missing."""
    from skimage import data

    pixels = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.camera(), data.coins()]
    urls, texts = [f"{url}/missing.jpg"], ["nothing"]
    for number, array in enumerate(pixels):
        name = f"{number}.{'png' if number % 2 else 'jpg'}"
        image = Image.fromarray(np.asarray(array))
        scale = 600 / min(image.size)  # pictures smaller than the teacher's 512 px would be skipped
        image.resize((round(image.width * scale), round(image.height * scale))).save(folder / name)
        urls.append(f"{url}/{name}")
        texts.append(f"photograph number {number}")
    columns = {"URL": urls, "TEXT": texts, "WIDTH": [512] * 7, "HEIGHT": [512] * 7, "similarity": [0.3] * 7}
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with a small SANA pipeline of random weights under sana-600m's id."""
    cache = tmp_path_factory.mktemp("hub")
    pipeline = make_sana(tmp_path_factory.mktemp("pipeline") / "sana")
    fill_hub_cache(cache, TEACHERS["sana-600m"].source, pipeline)
    return cache


def test_the_three_lines(
    tmp_path: Path, shell: Shell, served: tuple[Path, str], hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_laion(tmp_path / "laion.parquet", *served)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ddx.yaml").write_text(WORKSPACE_DEFAULTS)
    for line in LINES:
        shell(line, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(hub_cache))

    (store,) = (tmp_path / "runs" / "data").glob("laion-sana-600m-*.zarr")
    assert main.run(["inspect", str(store), "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert (inspected["rows"], inspected["ok"], inspected["complete"]) == (7, 6, True)
    assert sum(inspected["failed"].values()) == 1

    student = tmp_path / "runs" / "students" / "sana-600m-lcm"
    record = json.loads((student / "run.json").read_text())
    assert record["finished"]
    assert record["method"] == "lcm"
    assert (student / "model_index.json").exists()
    assert (student / "README.md").exists()

    samples = tmp_path / "runs" / "samples" / "sana-600m-lcm"
    assert (samples / "index.html").exists()
    pictures = list(samples.rglob("*.png"))
    assert len(pictures) >= 2
    assert all(np.asarray(Image.open(picture)).std() > 0 for picture in pictures)


@pytest.mark.parametrize("line", LINES[:2])
def test_without_the_weights(
    tmp_path: Path,
    served: tuple[Path, str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_laion(tmp_path / "laion.parquet", *served)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main.run(line.split()[1:]) == 1
    *_, error, hint = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert f"hf download {TEACHERS['sana-600m'].source}" in hint
    assert "--teacher sana-tiny" in hint
