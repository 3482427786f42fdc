"""Parts as tasks of a Ray cluster: the store of one process, whichever machine dies on the way."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.data.precompute.on_ray.tasks import Failed, Opened, Order, Said, Unfit, Wrote, finish, order_of, prepare, work
from ddx.data.precompute.plan import make_plan
from ddx.data.precompute.run import open_store, write_parts
from ddx.data.ranks import claim, part_lock, share_lock
from ddx.data.store import Store
from ddx.errors import DdxError, UsageError
from ddx.progress import NullProgress
from ddx.workspace import Workspace
from picture_server import serve_pictures, write_urls
from stores import shard_bytes
from watchdog import PATIENT, PATIENT_FLAGS, wait_until

Ddx = Callable[..., Any]
NUM_ROWS, PART_ROWS = 24, 4
HELD_FROM_ROW = 10
ATTEMPTS = 5  # to start a node, for which Ray waits half a minute


@pytest.fixture(scope="session")
def whole(config: PrecomputeConfig, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precompute(replace(config, out=tmp_path_factory.mktemp("whole") / "whole.zarr"), [str(pairs)])


@pytest.fixture
def order(config: PrecomputeConfig, pairs: Path, tmp_path: Path) -> Order:
    ours = replace(config, out=tmp_path / "s.zarr", engine="ray")
    return order_of(ours, [str(pairs)], str(tmp_path), None, threads=1)


def test_the_steps_of_a_run_make_the_store_of_one_process(order: Order, whole: Path) -> None:
    store = order.config.out
    assert store is not None
    with claim(store, share_lock(0)) as mine:
        assert mine
        assert list(prepare(order)) == [Opened((0, 1, 2, 3), 14, 4)]
        assert list(work(order, (2, 0))) == [Opened(), Wrote(2, 3, 1), Wrote(0, 3, 1)]
        assert list(work(order, (1, 2, 3))) == [Opened(), Wrote(2, 3, 1), Wrote(1, 3, 1), Wrote(3, 2, 0)]
        assert list(prepare(order)) == [Opened((), 0, 4)]
    *lines, last = finish(order)
    assert last == Opened() and any(isinstance(line, Said) and "11 of 14 rows" in line.line for line in lines)
    assert shard_bytes(store) == shard_bytes(whole)
    assert not list((store / "_ddx").glob("part-*"))
    config = json.loads((store / "run.json").read_text())["config"]
    assert (config["engine"], config["decode_threads"]) == ("local", None)


def test_a_part_that_another_task_is_writing_is_waited_for_and_kept(order: Order, tmp_path: Path) -> None:
    store = order.config.out
    assert store is not None
    events: list[object] = []
    with claim(store, share_lock(0)):
        assert list(prepare(order))
        with claim(store, part_lock(1)):
            other = threading.Thread(target=lambda: events.extend(iter(work(order, (1,)))))
            other.start()
            wait_until(lambda: events)  # it has the store open, and asks for the part
            plan = make_plan(order.config, order.sources, Workspace(tmp_path))
            assert list(write_parts(*open_store(plan, None, NullProgress()), [1], NullProgress())) == [1]
            times = {path: path.stat().st_mtime_ns for path in store.rglob("c.1.*")}
        other.join()
    assert events == [Opened(), Wrote(1, 3, 1)]
    assert times and times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.0.1"}, "has ddx .*, and the command ddx 0.0.1"),
        ({"folder": "/no/such/folder"}, "has no folder /no/such/folder"),
        ({}, "does not see .*s.zarr"),  # nobody has claimed it on this file system
    ],
)
def test_a_machine_that_is_not_like_the_others_is_named(order: Order, change: dict[str, Any], message: str) -> None:
    (event,) = work(replace(order, run="not here", **change), (0,))
    assert isinstance(event, Failed) and isinstance(event.error, Unfit)
    with pytest.raises(Unfit, match=f"{socket.gethostname()} {message}"):
        raise event.error


@pytest.mark.parametrize(
    ("given", "message", "cure"),
    [
        ({"ray_cpus": 2.0}, "ray_cpus = 2.0 is for tasks of Ray", "--engine ray"),
        ({"engine": "ray", "rank": 0, "world": 2}, "shares the parts out by itself", "--rank"),
        ({"engine": "ray", "ray_address": "ray://head:10001"}, "Ray's client", "ray job submit"),
        ({"engine": "ray", "ray_cpus": 0.0}, "ray_cpus = 0.0 is too little", "--ray-cpus"),
        ({"engine": "ray", "ray_retries": -1}, "ray_retries = -1 is too little", "--ray-retries"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], message: str, cure: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        PrecomputeConfig(**given)
    assert cure in str(caught.value.hint)


def test_without_ray_the_error_names_the_package(
    config: PrecomputeConfig, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DdxError, match="Ray is not installed") as caught:
        precompute(replace(config, out=tmp_path / "s.zarr", engine="ray"), [str(pairs)])
    assert caught.value.hint == "pip install 'ddx[ray]'"
    assert not (tmp_path / "s.zarr").exists()


def test_ray_is_imported_by_whoever_asks_for_it_alone() -> None:
    script = "import sys, ddx.data.precompute.on_ray, ddx.cli.precompute; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no tasks, and two machines of one core."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ddx[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_agent_register_timeout_ms", "600000")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")  # sums are rounded by how they are cut up
        started = _patiently(
            lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        )
        try:
            for _ in range(2):
                _patiently(lambda: started.add_node(num_cpus=1))
            yield started
        finally:
            started.shutdown()


def _patiently(start: Callable[[], Any]) -> Any:
    for _ in range(ATTEMPTS - 1):
        try:
            return start()
        except Exception as error:  # Ray raises bare ones
            print(error)
    return start()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[Path, threading.Event]]:
    """A parquet of URLs; the pictures from HELD_FROM_ROW on are only sent once the event is set."""
    with serve_pictures({6: 404}, held_from=HELD_FROM_ROW) as server:
        yield write_urls(tmp_path / "urls.parquet", [server.url(row) for row in range(NUM_ROWS)]), server.released


def line(source: Path, config: PrecomputeConfig, cluster: Any, store: Path) -> tuple[object, ...]:
    options = ("--allow-private-hosts", "--device", "cpu", "--part-rows", PART_ROWS, "--batch-size", 3, *PATIENT_FLAGS)
    ray = ("--engine", "ray", "--ray-address", cluster.address, "--ray-cpus", 1)
    return ("precompute", source, "--teacher", config.teacher, "--out", store, *options, *ray)


def held(store: Path) -> list[int]:
    """The parts whose tasks wait for pictures."""
    return [part for part in range(HELD_FROM_ROW // PART_ROWS, NUM_ROWS // PART_ROWS) if is_held(store, part)]


def is_held(store: Path, part: int) -> bool:
    if not (store / "_ddx" / f"part-{part}.lock").exists():
        return False
    with claim(store, part_lock(part)) as free:
        return not free


def wanted(source: tuple[Path, threading.Event], config: PrecomputeConfig, folder: Path) -> dict[str, bytes]:
    """The bytes of one process."""
    source[1].set()
    options: dict[str, Any] = {"device": "cpu", "part_rows": PART_ROWS, "batch_size": 3, **PATIENT}
    ours = PrecomputeConfig(teacher=config.teacher, out=folder / "one.zarr", allow_private_hosts=True, **options)
    return shard_bytes(precompute(ours, [str(source[0])]))


@pytest.mark.cluster
@pytest.mark.slow  # a cluster, and processes of it that import torch: half a minute of processor a test
def test_a_machine_that_dies_on_the_way_costs_time_only(
    ddx: Ddx, cluster: Any, source: tuple[Path, threading.Event], config: PrecomputeConfig, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    process = ddx(*line(source[0], config, cluster, store))
    wait_until(lambda: len(held(store)) == 2, process)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    wait_until(lambda: len(held(store)) == 1, process)  # its process has died too, and has not written its part
    source[1].set()
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "its machine is gone" in err or "its process died" in err
    assert shard_bytes(store) == wanted(source, config, tmp_path)
    assert not list(store.rglob("*.tmp"))
    _patiently(lambda: cluster.add_node(num_cpus=1))


@pytest.mark.cluster
@pytest.mark.slow
def test_an_interrupt_loses_nothing(
    ddx: Ddx, cluster: Any, source: tuple[Path, threading.Event], config: PrecomputeConfig, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    process = ddx(*line(source[0], config, cluster, store))
    wait_until(lambda: len(held(store)) == 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    kept = {path: path.stat().st_mtime_ns for path in (store / "_ddx" / "commit").iterdir()}
    assert f"stopped after {len(kept)} of 6 parts" in err
    expected = wanted(source, config, tmp_path)
    again = ddx(*line(source[0], config, cluster, store))
    assert again.communicate() and again.returncode == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert shard_bytes(store) == expected


@pytest.mark.cluster
@pytest.mark.slow
def test_stages_and_a_part_that_fails_always(
    ddx: Ddx, cluster: Any, source: tuple[Path, threading.Event], config: PrecomputeConfig, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    expected = wanted(source, config, tmp_path)
    command = line(source[0], config, cluster, store)
    process = ddx(*command, "--stage", "fetch")
    assert process.communicate() and process.returncode == 0
    pictures = store / "_ddx" / "fetched" / "2.pictures.parquet"
    good = pictures.read_bytes()
    pictures.write_bytes(b"not parquet")
    process = ddx(*command, "--stage", "encode", "--ray-retries", 1, "--json")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "1 of 6 parts failed 2 times each: part 2: ArrowInvalid" in err
    assert [record["part"] for record in Store(store).commits()] == [0, 1, 3, 4, 5]
    pictures.write_bytes(good)
    process = ddx(*command, "--stage", "encode", "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["complete"] and shard_bytes(store) == expected
