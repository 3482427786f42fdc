"""Which path an operation takes, and how a wrong request is answered."""

from __future__ import annotations

import pytest

from ddx.kernels import dispatch


@pytest.fixture(autouse=True)
def forget_decisions():
    dispatch.backend.cache_clear()
    yield
    dispatch.backend.cache_clear()


def test_auto_takes_torch_on_a_cpu_and_triton_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDX_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert dispatch.backend("cpu") == "torch"
    assert dispatch.backend("cuda") == "triton"
    assert dispatch.describe()["cpu"] == "torch (auto: Triton is for GPUs)"


def test_torch_can_be_forced_and_the_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDX_KERNELS", "torch")
    assert dispatch.backend("cuda") == "torch"
    assert dispatch.describe()["cpu"] == "torch (DDX_KERNELS=torch)"
    monkeypatch.setenv("DDX_KERNELS", "triton")
    assert dispatch.backend("cuda") == "torch"


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDX_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="cannot run on cpu"):
        dispatch.backend("cpu")
    assert dispatch.describe()["cpu"].startswith("error")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.backend("cpu") == "triton"


def test_an_unknown_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDX_KERNELS", "cuda")
    with pytest.raises(ValueError, match="auto, triton, torch"):
        dispatch.backend("cpu")
