"""When a machine fails, the same command goes on: started again by torchrun, or with fewer processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import dies_once
import distill_runs as runs
from watchdog import WATCHDOG_S

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def command(flags: list[str], who: str, marker: Path, *lines: list[str]) -> list[str]:
    """Return the command for these commands of ddx, in which `who` dies once, as it saves step 6."""
    return [*TORCHRUN, *flags, dies_once.__file__, who, "6", str(marker), *map(json.dumps, lines)]


def environment() -> dict[str, str]:
    # or a rank that is started again may meet the addresses of dead ones, and wait for them half an hour
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **own_store}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def torchrun(
    world: int, restarts: int, marker: Path, *lines: list[str], who: str = "1", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run on one machine, whose second rank dies."""
    flags = ["--standalone", "--nproc-per-node", str(world), "--max-restarts", str(restarts)]
    return subprocess.run(
        command(flags, who, marker, *lines),
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


def assert_losses_of_one_process(student: Path, teacher_folder: Path, store: Path, workspace: Path) -> None:
    alone = runs.run(teacher_folder, store, workspace)
    ours, theirs = ([line["loss"] for line in runs.lines(folder)] for folder in (student, alone))
    assert len(ours) == runs.STEPS and ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("shard", ["full", pytest.param("none", marks=(pytest.mark.cluster, pytest.mark.slow))])
def test_a_rank_killed_in_a_save_is_started_again_and_the_run_ends_bit_for_bit_the_same(
    shard: str, teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    """Two starts of two processes: what torchrun and a dead peer do cannot be had for less."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    lines = [runs.flags(teacher_folder, store, tmp_path, out=out, shard=shard) for out in (killed, undisturbed)]
    done = torchrun(2, 3, tmp_path / "died", *lines)
    assert done.returncode == 0, done.stderr[-8000:]
    assert (tmp_path / "died").exists()
    runs.assert_same_run(killed, undisturbed)


@pytest.mark.cluster
@pytest.mark.slow  # three starts of two or four processes
def test_a_run_of_four_ranks_that_dies_goes_on_with_two(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    line = runs.flags(teacher_folder, store, tmp_path, out=tmp_path / "out")
    assert torchrun(4, 0, tmp_path / "died", line).returncode != 0
    assert [path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*")] == ["step-000003"]
    done = torchrun(2, 0, tmp_path / "died", line)
    assert done.returncode == 0, done.stderr[-8000:]
    assert_losses_of_one_process(tmp_path / "out", teacher_folder, store, tmp_path / "alone")


@pytest.mark.cluster
@pytest.mark.slow  # two starts of four and of two processes
def test_a_run_goes_on_at_any_number_of_processes_and_any_sharding(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    """Four in two machines, which have equal shares, then two with shares, then one with everything."""
    out = tmp_path / "out"
    for world, steps, shard in ((4, 3, "hybrid"), (2, 6, "full")):
        line = runs.flags(teacher_folder, store, tmp_path, out=out, train_steps=steps, shard=shard)
        done = torchrun(world, 0, tmp_path / "died", line, who="none", MACHINE="2")
        assert done.returncode == 0, done.stderr[-8000:]
        assert (out / "checkpoints" / f"step-{steps:06d}" / f"student.1-of-{world}.safetensors").exists()
    runs.run(teacher_folder, store, tmp_path, out=str(out), said=("train_steps",))
    assert_losses_of_one_process(out, teacher_folder, store, tmp_path / "alone")


@pytest.mark.cluster
@pytest.mark.slow  # torchrun waits for the lost machine before it goes on without
def test_a_run_on_two_machines_goes_on_by_itself_when_one_is_lost(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    line, marker = runs.flags(teacher_folder, store, tmp_path, out=tmp_path / "out"), tmp_path / "died"
    flags = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", "localhost"]
    flags += ["--rdzv-id", "job", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"]
    machines = [
        subprocess.Popen(
            command([*flags, "--rdzv-conf", f"is_host={number == 0:d}"], who, marker, line),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, who in enumerate(("none", "all"))
    ]
    said, _ = machines[0].communicate(timeout=WATCHDOG_S)
    machines[1].communicate(timeout=WATCHDOG_S)
    assert machines[0].returncode == 0 and machines[1].returncode == -9 and marker.exists(), said[-8000:]
    assert_losses_of_one_process(tmp_path / "out", teacher_folder, store, tmp_path / "alone")
