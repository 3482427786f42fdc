"""`ddx doctor --cluster` under torchrun: whether the machines of a run agree, reach one another and share a folder."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ddx.cli.finding import Finding
from ddx.errors import DdxError, UsageError, cannot_write, first_line

if TYPE_CHECKING:
    from ddx.training.distributed import Ranks

LAUNCH = "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m ddx doctor --cluster"
LARGEST_DIFFERENCE = 2.0  # seconds between clocks: torchrun's own rendezvous compares times
MIB = 1 << 20
WRITTEN = 64 * MIB  # to the workspace, by one process a machine
REDUCED = 64 * MIB  # bytes of float32, five times
REPEATS = 5


@dataclass(frozen=True)
class Facts:
    """One process of the run: where it is, and what must be equal on all."""

    host: str
    device: str
    versions: dict[str, str]
    clock: float  # seconds since 1970, taken when all had met
    sees_folder: bool
    lock_is_held: bool | None  # whether the first process's lock kept this one out; None on the first
    written: float | None  # MB/s to the workspace; None but on one process a machine


def examine_cluster(workspace: Path) -> list[Finding] | None:
    """Return what the first process found out with the others; None on these.

    UsageError without torchrun, DdxError where processes do not meet.
    """
    if "WORLD_SIZE" not in os.environ:
        raise UsageError("--cluster looks at the machines of a run, and this is one process", hint=LAUNCH)
    from ddx.training.distributed import join

    try:
        with join() as ranks:
            found = _gather(ranks, workspace)
            seconds = _seconds_to_reduce(ranks)
            return [*judge(found), _reduced(ranks, seconds)] if ranks.is_first else None
    except (RuntimeError, OSError) as error:
        raise DdxError(
            f"the processes of this run do not reach one another: {first_line(error)}",
            hint="NCCL_DEBUG=INFO tells more; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use",
        ) from error


def _gather(ranks: Ranks, workspace: Path) -> list[Facts]:
    from ddx.data.ranks import claim
    from ddx.run_record import versions

    name = ranks.share(f"ddx-doctor-{uuid4().hex}")
    folder = workspace / name
    ranks.first(lambda: _make(folder))
    ranks.wait()
    clock = time.time()
    sees = folder.is_dir()
    try:
        held: bool | None = None
        if ranks.is_first:
            with claim(folder, "doctor"):
                ranks.wait()
                ranks.wait()
        else:
            ranks.wait()
            if sees:
                with claim(folder, "doctor") as mine:
                    held = not mine
            ranks.wait()
        speed = _writing_speed(folder / socket.gethostname()) if sees and _is_first_of_its_machine() else None
        mine_too = Facts(
            host=socket.gethostname(),
            device=_device(ranks),
            versions={"python": platform.python_version(), **versions()},
            clock=clock,
            sees_folder=sees,
            lock_is_held=held,
            written=speed,
        )
        return ranks.gathered(mine_too)
    finally:
        if ranks.is_first:
            _remove(folder)


def judge(found: Sequence[Facts]) -> list[Finding]:
    """Return the findings from the facts of all processes, in the order of their ranks."""
    hosts = list(dict.fromkeys(facts.host for facts in found))
    findings = [Finding("processes", True, f"{len(found)} on {', '.join(hosts)}")]
    devices: dict[str, str] = {}
    for rank, facts in enumerate(found):
        devices.setdefault(facts.device, f"rank {rank} ({facts.host})")
    text = "; ".join(f"{where} has {device}" for device, where in devices.items())
    findings.append(
        Finding("devices", len(devices) == 1, text if len(devices) > 1 else found[0].device, "use equal machines")
    )
    findings.append(_versions(found))
    blind = [f"rank {rank} ({facts.host})" for rank, facts in enumerate(found) if not facts.sees_folder]
    findings.append(
        Finding(
            "shared workspace",
            not blind,
            f"not seen by {', '.join(blind)}" if blind else "seen by all",
            "put --workspace on a file system that every machine mounts at the same path",
        )
    )
    if any(facts.lock_is_held is False for facts in found):
        findings.append(
            Finding("locks", False, "none", "mount with locks (Lustre: -o flock; NFS: version 4): two runs may collide")
        )
    elif any(facts.lock_is_held for facts in found):
        findings.append(Finding("locks", True, "held across processes"))
    apart = max(facts.clock for facts in found) - min(facts.clock for facts in found)
    findings.append(Finding("clocks", apart <= LARGEST_DIFFERENCE, f"{apart:.2f} s apart", "run chrony or ntpd"))
    speeds = [f"{facts.host} {facts.written:.0f} MB/s" for facts in found if facts.written is not None]
    if speeds:
        findings.append(Finding("writing", True, ", ".join(speeds)))
    return findings


def _versions(found: Sequence[Facts]) -> Finding:
    first, wrong = found[0].versions, []
    for rank, facts in enumerate(found):
        names = {*first, *facts.versions}
        wrong += [
            f"{name} {facts.versions.get(name, 'missing')} on rank {rank} ({facts.host}), "
            f"{first.get(name, 'missing')} on rank 0"
            for name in sorted(names)
            if facts.versions.get(name) != first.get(name)
        ]
    return Finding(
        "equal versions", not wrong, "; ".join(wrong) or f"{len(first)} packages", "install the same on every machine"
    )


def _device(ranks: Ranks) -> str:
    import torch

    if ranks.device.type != "cuda":
        return "the processor"
    properties = torch.cuda.get_device_properties(ranks.device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _is_first_of_its_machine() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _writing_speed(path: Path) -> float:
    """Return MB/s of one file, written and synced."""
    block, began = os.urandom(MIB), time.perf_counter()
    with path.open("wb") as file:
        for _ in range(WRITTEN // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return WRITTEN / 1e6 / seconds


def _seconds_to_reduce(ranks: Ranks) -> float:
    """Return the seconds of one sum of 64 MiB over all ranks, after one that opens the connections."""
    import torch

    values = torch.ones(REDUCED // 4, device=ranks.device)
    ranks.mean(values)
    began = time.perf_counter()
    for _ in range(REPEATS):
        total = ranks.mean(values)
    right = bool((total == 1.0).all())  # waits for the device too
    seconds = (time.perf_counter() - began) / REPEATS
    if not right:
        raise DdxError("a sum over all processes came out wrong", hint="NCCL_P2P_DISABLE=1 tells whether links fail")
    return seconds


def _reduced(ranks: Ranks, seconds: float) -> Finding:
    # what a ring moves: each rank sends and receives 2 (N - 1) / N of the bytes (NCCL's "bus bandwidth")
    moved = 2 * (ranks.world - 1) / ranks.world * REDUCED
    backend = "NCCL" if ranks.device.type == "cuda" else "gloo"
    return Finding(
        "all-reduce", True, f"64 MiB in {seconds * 1e3:.0f} ms by {backend}: {moved / seconds / 1e9:.1f} GB/s"
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(folder.parent, error) from error


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
