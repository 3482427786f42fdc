from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import distill_runs as runs
from ddx.device import find_device
from ddx.errors import UsageError

# A derivative is taken of the bare network, beside the wrapped one whose gradients are exchanged; several networks take
# turns; the times of all ranks are drawn from one histogram.
CASES = {
    "lcm": {},
    "meanflow": {},
    "scm": {"time_adaptive": True},
    "dmd2": {"fake_updates": 2, "num_steps": 2},
}


@pytest.mark.parametrize("method", CASES)
def test_two_ranks_train_as_one_at_the_same_global_batch(
    method: str, teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    settings = {"method": method, **CASES[method]}
    alone = runs.run(teacher_folder, store, tmp_path / "alone", **settings)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ddx.cli.main", *runs.flags(teacher_folder, store, tmp_path / "together", **settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    (together,) = (tmp_path / "together" / "students").iterdir()

    losses = [[line["loss"] for line in runs.lines(student)] for student in (alone, together)]
    norms = [[line["grad_norm"] for line in runs.lines(student)] for student in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    for name, value in runs.tensors(alone).items():
        if name.startswith("student/"):
            gap = (runs.tensors(together)[name] - value).norm()
            assert gap <= 1e-3 * value.norm() + 1e-5, name


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="gpu7"):
        find_device("gpu7")
