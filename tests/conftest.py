"""What holds for every Python test: no network but loopback, few threads, a workspace of its own."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from costs import Costs

# Before any test module imports torch or huggingface_hub, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["NO_COLOR"] = "1"
# Triton decides when a kernel is imported whether it is interpreted; `make test-gpu` sets 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell's background job ignores SIGINT, and so would the commands that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


WORKSPACES = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    """Every run says at its end where its time went."""
    config.pluginmanager.register(Costs(config))


@pytest.fixture(autouse=True)
def own_workspace(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test writes into the checkout: the default workspace is a folder of the test."""
    folder = tmp_path_factory.getbasetemp() / f"workspace-{next(WORKSPACES)}"  # made by what writes there, if anything
    monkeypatch.setenv("DDX_WORKSPACE", str(folder / "runs"))
    yield


def test_of(item: pytest.Item) -> str:
    """The test without its case."""
    return item.nodeid.partition("[")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process ends long after the others. Tests marked `gpu` are skipped without one.

    Tests marked `short` are left out where the slow case does the same and more.
    """
    if "slow" not in config.option.markexpr:  # the slow ones run too
        whole = {test_of(item) for item in items if item.get_closest_marker("slow")}
        items[:] = [item for item in items if not (item.get_closest_marker("short") and test_of(item) in whole)]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and `make test-gpu`"))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks through it again, which took a twentieth of the time."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Else extension modules report what they hold as leaked."""
    gc.unfreeze()


@pytest.fixture
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Triton's cache of what this run of the tests compiles ahead of time, shared by all its processes."""
    folder = tmp_path_factory.getbasetemp().parent / "compiled-kernels"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(params=["triton", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each test that takes this runs on Triton's interpreter and on the torch reference."""
    from ddx.kernels import dispatch

    monkeypatch.setenv("DDX_KERNELS", request.param)
    dispatch.backend.cache_clear()
    assert dispatch.backend("cpu") == request.param
    yield request.param
    dispatch.backend.cache_clear()


@pytest.fixture
def triton_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs on Triton's interpreter alone."""
    from ddx.kernels import dispatch

    monkeypatch.setenv("DDX_KERNELS", "triton")
    dispatch.backend.cache_clear()
    assert dispatch.backend("cpu") == "triton"
    yield
    dispatch.backend.cache_clear()
