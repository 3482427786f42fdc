from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import distill_runs as runs
import two_ranks
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.device import find_device
from ddx.errors import UsageError
from pipelines import make_sana
from stores import shard_bytes
from watchdog import WATCHDOG_S

# two losses that are balanced, times of all rows from one histogram, a derivative beside what is trained, and fakes
# with the caption of another row, which may be another rank's. RAdam, since CAME makes whole steps of the rounding that
# is the gradient of a key's bias.
RUN = {"method": "sana-sprint", "loss_balance": "norm", "time_adaptive": True, "optimizer": "radam"}


@pytest.mark.parametrize(
    "which",
    [pytest.param("few", marks=pytest.mark.short), pytest.param("every", marks=pytest.mark.slow)],  # minutes
)
def test_two_ranks_and_micro_batches_train_as_one_batch_does(
    teacher_folder: Path, store: Path, tmp_path: Path, which: str
) -> None:
    """Methods, alone, with a discriminator and with each balance; and the commands, each through its store."""
    folder, out = make_sana(tmp_path / "tiny", layers=1, width=16), tmp_path / "out"
    pictures = str(store.parent / "pictures.parquet")
    sizes = PrecomputeConfig(teacher=str(teacher_folder), device="cpu", part_rows=8)
    lines = [
        ["precompute", pictures, "--teacher", sizes.teacher, "--device", "cpu", "--part-rows", "8"],
        runs.flags(teacher_folder, store, tmp_path / "together", **RUN, micro_batch_size=1),
    ]
    lines[0] += ["--out", str(tmp_path / "together.zarr")]
    make_sana(out / "wide", layers=1, width=64)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [two_ranks.__file__, str(folder), str(out), which, json.dumps(lines)]
    path = os.pathsep.join([str(Path(two_ranks.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.returncode == 0, done.stderr[-8000:]

    found = {key: value for rank in (0, 1) for key, value in json.loads((out / f"{rank}.json").read_text()).items()}
    assert found.keys() == {str(case) for case in two_ranks.cases(every=which == "every")}
    assert {case: gaps for case, gaps in found.items() if not all(gap <= 1e-3 for gap in gaps.values())} == {}

    made_alone = precompute(replace(sizes, out=tmp_path / "alone.zarr"), [pictures])
    assert shard_bytes(tmp_path / "together.zarr") == shard_bytes(made_alone)
    alone = runs.run(teacher_folder, store, tmp_path / "alone", **RUN)
    (together,) = (tmp_path / "together" / "students").iterdir()
    for name, gap in (("loss", 1e-4), ("discriminator_loss", 1e-4), ("grad_norm", 1e-3)):
        ours, theirs = ([line[name] for line in runs.lines(student)] for student in (together, alone))
        assert ours == pytest.approx(theirs, rel=gap), name
    found, expected = runs.tensors(together), runs.tensors(alone)
    assert "discriminator/heads.0.inside.weight" in expected
    for name, value in expected.items():
        if name.startswith(("student/", "discriminator/")):
            assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="gpu7"):
        find_device("gpu7")
