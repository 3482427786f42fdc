"""A tiny teacher, parquet files with pictures inside, and the command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from ddx.data.config import PrecomputeConfig
from pipelines import make_sana
from stores import write_pairs


@pytest.fixture(autouse=True)
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
    return PrecomputeConfig(
        teacher=str(teacher_folder), allow_private_hosts=True, device="cpu", part_rows=4, batch_size=3, retries=0
    )


Ddx = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def ddx() -> Iterator[Ddx]:
    """Start `ddx …` as a process; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: object,
        launcher: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        **options: object,
    ) -> subprocess.Popen[str]:
        line = [sys.executable, *launcher, "-m", "ddx.cli.main", *map(str, arguments)]
        environment = environment or {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
