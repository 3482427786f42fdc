"""The paths that an operation can take, on a CPU: Triton's interpreter and the torch reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ddx.kernels import dispatch


@pytest.fixture(params=["triton", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each test that takes this runs on Triton's interpreter and on the torch reference."""
    monkeypatch.setenv("DDX_KERNELS", request.param)
    dispatch.backend.cache_clear()
    assert dispatch.backend("cpu") == request.param
    yield request.param
    dispatch.backend.cache_clear()


@pytest.fixture
def triton_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs on Triton's interpreter alone."""
    monkeypatch.setenv("DDX_KERNELS", "triton")
    dispatch.backend.cache_clear()
    assert dispatch.backend("cpu") == "triton"
    yield
    dispatch.backend.cache_clear()
