"""One student a family, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from students import make_student


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flow_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student("flow", tmp_path_factory.mktemp("students") / "flow")


@pytest.fixture(scope="session")
def vp_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student("eps", tmp_path_factory.mktemp("students") / "vp")
