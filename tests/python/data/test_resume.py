"""A precompute that is stopped loses at most the part at hand, and ends with the bytes of one that was not."""

from __future__ import annotations

import http.server
import io
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stores import finish, shard_bytes

NUM_ROWS, PART_ROWS = 24, 4
SLOW_FROM_ROW = 10


@pytest.fixture
def slow_source(tmp_path: Path) -> Iterator[tuple[Path, threading.Event]]:
    """Pictures over HTTP; those from SLOW_FROM_ROW on are only sent once the event is set."""
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            row = int(self.path.strip("/"))
            if row >= SLOW_FROM_ROW:
                released.wait()
            buffer = io.BytesIO()
            Image.linear_gradient("L").rotate(15 * row).resize((80 + row, 90)).convert("RGB").save(buffer, "PNG")
            self.send_response(404 if row == 6 else 200)
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        path = tmp_path / "urls.parquet"
        texts = [f"a cat {'and a dog ' * (row % 4)}" for row in range(NUM_ROWS)]
        pq.write_table(pa.table({"URL": [f"{url}/{row}" for row in range(NUM_ROWS)], "TEXT": texts}), path)
        yield path, released
        released.set()
        server.shutdown()


@pytest.fixture
def arguments(slow_source: tuple[Path, threading.Event], teacher_folder: Path) -> tuple[object, ...]:
    options = ("--allow-private-hosts", "--device", "cpu", "--part-rows", PART_ROWS, "--batch-size", 3)
    return ("precompute", slow_source[0], "--teacher", teacher_folder, *options)


def wait_for(path: Path, timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.is_file():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_with_the_same_bytes(
    ddx: Callable[..., object],
    arguments: tuple[object, ...],
    slow_source: tuple[Path, threading.Event],
    tmp_path: Path,
    stop: signal.Signals,
    code: int,
) -> None:
    store = tmp_path / "stopped.zarr"
    process = ddx(*arguments, "--out", store)
    wait_for(store / "_ddx" / "commit" / "1")
    process.send_signal(stop)
    finish(process, code)
    assert not (store / "rows.parquet").exists()
    kept = {part: (store / "_ddx" / "commit" / part).read_bytes() for part in ("0", "1")}
    times = {path: path.stat().st_mtime_ns for path in (store / "latents").glob("c.[01].*")}
    assert len(times) == 2

    slow_source[1].set()
    finish(ddx(*arguments, "--out", store))
    finish(ddx(*arguments, "--out", tmp_path / "whole.zarr"))
    assert shard_bytes(store) == shard_bytes(tmp_path / "whole.zarr")
    assert kept == {part: (store / "_ddx" / "commit" / part).read_bytes() for part in kept}
    assert times == {path: path.stat().st_mtime_ns for path in times}, "finished parts are not made again"
    assert not list(store.rglob("*.tmp"))


def test_two_ranks_make_the_bytes_of_one(
    ddx: Callable[..., object],
    arguments: tuple[object, ...],
    slow_source: tuple[Path, threading.Event],
    tmp_path: Path,
) -> None:
    slow_source[1].set()
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    finish(ddx(*arguments[0:], "--out", tmp_path / "two.zarr", launcher=torchrun))
    finish(ddx(*arguments, "--out", tmp_path / "one.zarr"))
    assert shard_bytes(tmp_path / "two.zarr") == shard_bytes(tmp_path / "one.zarr")


def test_other_settings_are_refused_by_name_and_nothing_is_touched(
    ddx: Callable[..., object],
    arguments: tuple[object, ...],
    slow_source: tuple[Path, threading.Event],
    tmp_path: Path,
) -> None:
    slow_source[1].set()
    store = tmp_path / "x.zarr"
    finish(ddx(*arguments, "--out", store))
    before = shard_bytes(store)
    _, err = finish(ddx(*arguments[:-1], 2, "--out", store), code=2)
    assert "batch_size = 3; this run has 2" in err
    assert "--out" in err.splitlines()[-1]
    assert shard_bytes(store) == before


def test_a_full_disk_is_one_line_and_the_store_goes_on_later(
    ddx: Callable[..., object],
    arguments: tuple[object, ...],
    slow_source: tuple[Path, threading.Event],
    tmp_path: Path,
) -> None:
    slow_source[1].set()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))  # room for metadata, not for a shard of latents

    store = tmp_path / "x.zarr"
    _, err = finish(ddx(*arguments, "--out", store, preexec_fn=limit), code=1)
    *_, error, hint = err.strip().splitlines()
    assert error.startswith("error: cannot write")
    assert hint.startswith("hint: ")
    assert "Traceback" not in err
    assert not (store / "_ddx" / "commit" / "0").exists()
    finish(ddx(*arguments, "--out", store))
    finish(ddx(*arguments, "--out", tmp_path / "whole.zarr"))
    assert shard_bytes(store) == shard_bytes(tmp_path / "whole.zarr")
