"""Real pictures over HTTP, in LAION's columns, through all three stages.

The teacher is a small SANA pipeline of random weights: its ODE is smooth, so a hundred steps of seconds show what the
bundled teacher, which has never seen a photograph, would need thousands for.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from ddx.cli import main
from laion import serve_laion
from pipelines import make_sana
from watchdog import PATIENT_FLAGS

TRAIN_STEPS = 100


def ddx(line: str) -> None:
    assert main.run(shlex.split(line)) == 0, line


def test_photographs_become_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDX_WORKSPACE")
    make_sana(tmp_path / "teacher")
    with serve_laion(tmp_path, rows=240) as laion:
        assert laion.num_ok >= 200
        patience = " ".join(("--allow-private-hosts", *PATIENT_FLAGS))
        ddx(f"precompute laion.parquet --teacher ./teacher --batch-size 16 --part-rows 64 {patience}")
    (path,) = (tmp_path / "runs" / "data").glob("*.zarr")
    check_store(path, laion.ok)

    ddx(
        "distill --method lcm --teacher ./teacher --batch-size 16 --micro-batch-size none --learning-rate 2e-3"
        f" --train-steps {TRAIN_STEPS} --warmup-steps 10 --ema-half-life 200 --no-gradient-checkpointing"
        f" --log-every 10 --sample-every {TRAIN_STEPS} --sample-prompts 4"
        " --set guidance_min=4.5 --set guidance_max=4.5 --set solver_steps=4 --set target_decay=0"
    )
    (student,) = (tmp_path / "runs" / "students").iterdir()
    check_training(student)

    ddx("sample --steps 1 --prompt 'a tabby cat' --prompt 'the launch of a rocket'")
    assert len(list((tmp_path / "runs" / "samples").rglob("*.png"))) >= 2


def check_store(path: Path, ok: tuple[bool, ...]) -> None:
    """zarr-python reads every array, and the table says of each row what became of it."""
    group = zarr.open_group(str(path), mode="r")
    arrays = dict(group.arrays()) | {f"text/{name}": array for name, array in group["text"].arrays()}
    assert {"latents", "text/tokens", "text/offset", "text/length"} <= set(arrays)
    for name, array in arrays.items():
        assert np.isfinite(np.asarray(array[...], dtype=np.float64)).all(), name
    rows = pq.read_table(path / "rows.parquet")
    status = rows.column("status").to_pylist()
    assert [one == "ok" for one in status] == list(ok)
    assert len({one for one in status if one != "ok"}) >= 3, "failures are told apart"
    latents, lengths = np.asarray(arrays["latents"][:]), np.asarray(arrays["text/length"][:])
    assert latents.dtype == np.float16
    assert latents.shape[0] == len(ok)
    for row, good in enumerate(ok):
        assert (np.abs(latents[row]).max() > 0) == good
        assert (lengths[row] > 0) == good


def check_training(student: Path) -> None:
    """The loss and the distance to the teacher's ODE end points fall clearly against step 0."""
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0], losses
    distances = {line["step"]: line["ode_distance"] for line in lines if "ode_distance" in line}
    assert min(distances) == 0
    assert distances[TRAIN_STEPS] < 0.3 * distances[0], distances
