from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

import four_savers
from ddx.checkpoints.folder import load_checkpoint
from ddx.checkpoints.shares import whole
from watchdog import WATCHDOG_S


def test_what_four_ranks_save_while_they_train_is_read_at_any_sharding_and_what_fails_fails_on_all(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, four_savers.__file__, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    expected = load_file(tmp_path / "expected.safetensors")
    for kind in ("full", "hybrid"):
        path = tmp_path / kind / "step-000002"
        saved = load_checkpoint(path)
        found = {
            f"{group}/{name}": whole(value) for group, them in saved.tensors.items() for name, value in them.items()
        }
        assert found.keys() == expected.keys() and saved.state == {"step": 2}
        assert [name for name, value in expected.items() if not value.equal(found[name])] == []
        written = [load_file(file) for file in path.glob("*.safetensors")]
        values = sum(value.numel() for tensors in written for value in tensors.values())
        assert values == sum(value.numel() for value in expected.values())  # each of them once
