"""A student whose teacher draws scenes, as far as its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from students import make_student


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student("flow", tmp_path_factory.mktemp("students") / "tiny-lcm", buckets=[[64, 64], [96, 64]])
