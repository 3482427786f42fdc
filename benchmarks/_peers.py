"""The programs that ours is measured beside, on the same bytes and in the same run, in processor time.

Processor time (user and system, all threads, and processes that have ended) instead of wall time, so that other work
on the machine counts less; it still shares caches and memory with us, hence the turns: ours, peer, ours, peer, …
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import io
import multiprocessing
import resource
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def need(*modules: str) -> None:
    """End with one line if a peer's module is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        hint = "install the peers (Python below 3.13): pip install -e '.[bench]'"
        raise SystemExit(f"missing: {', '.join(missing)}; {hint}")


@dataclass(frozen=True)
class Work:
    """What one turn does: so many items."""

    run: Callable[[], object]
    items: int

    def seconds(self) -> float:
        """Run it once; processor time an item."""
        start = processor_seconds()
        self.run()
        return (processor_seconds() - start) / self.items


def processor_seconds() -> float:
    """The time that all threads of this process, and its children that have ended, have run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def paired(ours: Work, peers: Mapping[str, Work], *, rounds: int) -> dict[str, Any]:
    """Each peer right after ours, round by round: median rates, and the ratio of each pair."""
    seconds: dict[str, list[float]] = {name: [] for name in ("ddx", *peers)}
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    for work in (ours, *peers.values()):
        work.run()  # warm
    for _ in range(rounds):
        for name, peer in peers.items():
            mine, other = ours.seconds(), peer.seconds()
            seconds["ddx"].append(mine)
            seconds[name].append(other)
            ratios[name].append(other / mine)
    return {
        "items per second of processor time": {
            name: rounded(1 / statistics.median(times)) for name, times in seconds.items()
        },
        "ddx's rate over the peer's": {
            name: {"median": rounded(statistics.median(of)), "min": rounded(min(of)), "max": rounded(max(of))}
            for name, of in ratios.items()
        },
        "rounds": rounds,
    }


def rounded(value: float) -> float:
    """Three figures."""
    return float(f"{value:.3g}")


def photograph(size: tuple[int, int] = (1024, 768), name: str = "motorcycle_left.png") -> bytes:
    """One of scikit-image's photographs as a JPEG of that size."""
    import skimage.data
    from PIL import Image

    with Image.open(Path(skimage.data.__file__).parent / name) as image:
        out = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=90)
    return out.getvalue()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512  # a client that opens a connection for every picture is not refused


def _serve(folder: str, port: Any) -> None:
    handler = functools.partial(_Quiet, directory=folder)
    with _Server(("127.0.0.1", 0), handler) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder from a process of its own, whose time does not count."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=_serve, args=(str(folder), port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()
