from __future__ import annotations

import pytest

from interpreted_bfloat16 import rounding_bfloat16


@pytest.fixture(autouse=True)
def bfloat16_as_gpus_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rounding_bfloat16(monkeypatch)
