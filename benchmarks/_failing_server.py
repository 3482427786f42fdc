"""Pictures over loopback HTTP, some rows of which fail, always in the same way; some of those later heal.

What a row answers depends on its number and on `healed` alone, so that the store of a run that nothing disturbed is
well defined. From row `limit` on, answers trickle: no picture comes to its end, and no deadline passes either.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_ROWS, PART_ROWS = 128, 4
NUM_PARTS = NUM_ROWS // PART_ROWS

# Failures that stay.
LASTING = {
    **{15: "404", 31: "503", 47: "link-local", 63: "garbage", 79: "closed port", 95: "503", 111: "410", 127: "404"},
    **dict.fromkeys(range(48, 52), "404"),  # no row of this part is ever fine
}
# Failures that heal: one row of most parts, another place in each, and all rows of one part.
_KINDS = itertools.cycle(("503", "reset", "cut", "500"))
HEALING = {
    **{PART_ROWS * part + part % PART_ROWS: next(_KINDS) for part in range(NUM_PARTS) if part % PART_ROWS != 3},
    **dict.fromkeys(range(36, 40), "503"),
    70: "stall",
}
RETRY = ("http_5*", "reset", "timeout")  # the statuses of HEALING
FLAKY = (21, 58, 101)  # every second request fails: a further try always helps
ELSEWHERE = {"link-local": "http://169.254.1.1/x.png", "closed port": "http://127.0.0.1:1/x.png"}

STALL_S = 600.0  # longer than any deadline
TRICKLE_S, TRICKLE_BYTES = 0.8, 1 << 14


class FailingServer(http.server.ThreadingHTTPServer):
    """Set `limit` and `healed` between two runs."""

    daemon_threads = True
    request_queue_size = 256  # a full queue would cost a second, for the client's kernel to ask again

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.limit = NUM_ROWS
        self.healed = False
        self.requests = dict.fromkeys(FLAKY, 0)
        self.pictures = [_picture(row) for row in range(NUM_ROWS)]

    def kind(self, row: int) -> str:
        """What happens to a request for this row."""
        if row >= self.limit:
            return "trickle"
        if row in FLAKY:
            self.requests[row] += 1
            return "503" if self.requests[row] % 2 else "picture"
        return LASTING.get(row) or (not self.healed and HEALING.get(row)) or "picture"

    def write_list(self, path: Path) -> None:
        """Write the parquet file of URLs and captions."""
        own = f"http://127.0.0.1:{self.server_port}"
        urls = [ELSEWHERE.get(LASTING.get(row, ""), f"{own}/{row}") for row in range(NUM_ROWS)]
        captions = [f"a cat {'and a dog ' * (row % 5)}" for row in range(NUM_ROWS)]
        pq.write_table(pa.table({"url": urls, "caption": captions}), path)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FailingServer

    def do_GET(self) -> None:
        row = int(self.path.strip("/"))
        kind, picture = self.server.kind(row), self.server.pictures[row]
        with contextlib.suppress(OSError):  # the client was killed
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            self.send_response(int(kind) if kind.isdigit() else 200)
            self.send_header("Content-Length", str(TRICKLE_BYTES if kind == "trickle" else len(picture)))
            self.end_headers()
            if kind == "trickle":
                for _ in range(TRICKLE_BYTES - 1):
                    self.wfile.write(b"\0")
                    time.sleep(TRICKLE_S)
            elif kind == "stall":
                time.sleep(STALL_S)
            elif kind == "cut":
                self.wfile.write(picture[: len(picture) // 2])
            else:
                self.wfile.write(bytes(len(picture)) if kind == "garbage" else picture)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def _picture(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").rotate(15 * row).resize((80 + row, 90)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def serve() -> Iterator[FailingServer]:
    """Serve from threads of this process."""
    with FailingServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
