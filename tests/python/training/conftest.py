from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distilling import make_store
from pipelines import make_sana

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="session")
def store(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(teacher_folder, tmp_path_factory.mktemp("store"))
