"""A tiny teacher, parquet files with pictures inside, and the command as a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import Command
from ddx.data.config import PrecomputeConfig
from pipelines import make_sana
from stores import write_pairs
from watchdog import PATIENT


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("teacher") / "sana")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet", 14)


@pytest.fixture(scope="session")
def config(teacher_folder: Path) -> PrecomputeConfig:
    """Parts of four rows, and pictures from this machine, each asked for once."""
    options: dict[str, Any] = {"device": "cpu", "part_rows": 4, "batch_size": 3, "retries": 0, **PATIENT}
    return PrecomputeConfig(teacher=str(teacher_folder), allow_private_hosts=True, **options)


Ddx = Callable[..., Command]


@pytest.fixture
def ddx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ddx]:
    """Start `ddx …` as a process; whatever still runs at the end of the test is killed."""
    started: list[Command] = []

    def start(*arguments: object, **options: Any) -> Command:
        started.append(Command([str(word) for word in arguments], tmp_path_factory.mktemp("command"), **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
