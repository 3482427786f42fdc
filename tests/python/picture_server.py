"""Pictures over real HTTP on this machine, with what goes wrong there on request."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@dataclass
class PictureServer:
    """Row r is a picture of 80 + r by 90 pixels, and answers with `status[r]` where that is set; 100 + r is the same.

    Rows from `held_from` on are not answered before `released` is set. `asked`: the rows that were asked for.
    """

    port: int = 0
    status: dict[int, int] = field(default_factory=dict)
    held_from: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    asked: list[int] = field(default_factory=list)

    def url(self, row: int, host: str = "127.0.0.1") -> str:
        """Where a row is."""
        return f"http://{host}:{self.port}/{row}"


@contextlib.contextmanager
def serve_pictures(status: dict[int, int] | None = None, held_from: int | None = None) -> Iterator[PictureServer]:
    """Serve until the block ends."""
    state = PictureServer(status=dict(status or {}), held_from=held_from)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            row = int(self.path.strip("/"))
            state.asked.append(row)
            if state.held_from is not None and row >= state.held_from:
                state.released.wait()
            buffer = io.BytesIO()
            number = row % 100
            Image.linear_gradient("L").rotate(15 * number).resize((80 + number, 90)).convert("RGB").save(buffer, "PNG")
            with contextlib.suppress(ConnectionError):  # who asked may have been killed
                self.send_response(state.status.get(row, 200))
                self.end_headers()
                self.wfile.write(buffer.getvalue())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.port = server.server_port
        yield state
        state.released.set()
        server.shutdown()


def write_urls(path: Path, urls: Sequence[str]) -> Path:
    """A parquet of these URLs, with captions of several lengths."""
    texts = [f"a cat {'and a dog ' * (row % 4)}" for row in range(len(urls))]
    pq.write_table(pa.table({"URL": list(urls), "TEXT": texts}), path)
    return path
