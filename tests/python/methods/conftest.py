from __future__ import annotations

import pytest

from ddx.teachers.base import Teacher
from distilling import KINDS, make_teacher


@pytest.fixture(scope="module", params=KINDS)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(request.param, tmp_path_factory.mktemp(request.param) / "pipeline")
