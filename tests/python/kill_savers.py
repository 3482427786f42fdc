"""Ranks that save without end, and are killed: what `training/test_killed_saves.py` runs.

    python kill_savers.py FOLDER KILLS

Each time two or three ranks go on from the newest checkpoint, and one of them, another one, or all are killed at some
moment, so mostly in a save. Every value of a checkpoint is its step. It prints, as JSON: after how many kills a save
was left half written, and the newest step.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # which a DTensor imports: once, here
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ddx.checkpoints.folder import Snapshot, latest_checkpoint, list_checkpoints, load_checkpoint
from ddx.checkpoints.shares import copy_into, whole
from ddx.cli.leaving import leave
from ddx.training import saver as saving
from ddx.training.distributed import Ranks
from ddx.training.saver import Saver

KEEP = 2


def save_on(folder: Path, meeting: Path, rank: int, world: int, last: int | None, told: int) -> None:
    """Save every step until killed, or to the `last`; the first rank writes those that are in place to `told`."""
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=world)
    ranks, mesh = Ranks(rank, world), init_device_mesh("cpu", (world,))
    saving.AT_ONCE = -1
    shares = distribute_tensor(torch.zeros(1031, 256), mesh, [Shard(0)])
    tensors = {"shares": {"w": shares}, "wholes": {f"{k}": torch.zeros(300_000 + k) for k in range(3)}}
    step = 0
    newest = latest_checkpoint(folder)
    if newest is not None:
        saved = load_checkpoint(newest)
        for group, values in tensors.items():
            for name, value in values.items():
                copy_into(value, saved.tensors[group][name])
        step = int(saved.state["step"])
    saver = Saver(folder, ranks, keep=KEEP)
    assert float(shares.to_local().min()) == step
    while step != last:
        step += 1
        for values in tensors.values():
            for value in values.values():
                value.add_(1.0)  # while the former ones are being written
        saver.start(step, Snapshot(tensors, {"step": step}))
        if ranks.is_first and last is None:
            os.write(told, struct.pack("q", step - 1))
        saver.settle()
    saver.wait()
    dist.destroy_process_group()


def fork(folder: Path, meeting: Path, world: int, last: int | None, told: int) -> list[int]:
    """Start ranks, which are copies of this process: so torch is imported once."""
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if last is None:  # what the others say of one that is killed
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                save_on(folder, meeting, rank, world, last, told)
                code = 0
            except BaseException as error:
                print(f"rank {rank}: {error!r}", file=sys.stderr)
            finally:
                os._exit(code)
        children.append(child)
    return children


def check(folder: Path, told: int) -> None:
    """Every checkpoint is what its step was, and what was said to be in place is."""
    found = list_checkpoints(folder)
    for path in found:
        saved = load_checkpoint(path)
        step = saved.state["step"]
        assert path.name == f"step-{step:06d}"
        for values in saved.tensors.values():
            for name, value in values.items():
                assert bool((whole(value) == step).all()), (path, name)
    assert (found[-1].name if found else "step-000000") >= f"step-{told:06d}", (found, told)


def main(folder: Path, kills: int) -> None:
    random.seed(0)
    half_written = newest = 0
    folder.mkdir(parents=True, exist_ok=True)
    meetings = folder.parent / "meetings"
    meetings.mkdir()
    for number in range(kills):
        world = 2 + number % 2
        reading, writing = os.pipe()
        children = fork(folder, meetings / str(number), world, None, writing)
        os.close(writing)
        for _ in range(2):  # they are under way
            told = struct.unpack("q", os.read(reading, 8))[0]
        time.sleep(random.uniform(0.0, 0.2))
        victims = (children, children[:1], children[-1:])[number % 3]
        for child in victims:
            os.kill(child, signal.SIGKILL)
        for child in children:  # the others end by themselves
            os.waitpid(child, 0)
        while word := os.read(reading, 8):
            told = struct.unpack("q", word)[0]
        os.close(reading)
        check(folder, told)
        half_written += any(path.name.startswith(".") and not path.name.endswith(".old") for path in folder.iterdir())
        newest = max(told, newest)
    last = newest + 10
    for child in fork(folder, meetings / "last", 2, last, 0):
        assert os.waitpid(child, 0)[1] == 0
    check(folder, last)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{last + k:06d}" for k in range(1 - KEEP, 1)]
    print(json.dumps({"half_written": half_written, "newest": newest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave(0)
