"""Small files that declare huge pictures are refused within milliseconds and megabytes; what Pillow and OpenCV do.

Each program gets each file in a process of its own, which has read an ordinary picture before: by how much the peak of
memory rises while it is read for the first time, and the time that one takes of twenty more (for ingest with opening
the list and starting its threads; wall time too, in which other work on the machine counts). What a program does not
refuse it reads once.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _peers import need, photograph, processor_seconds, rounded

REPEATS = 3  # processes; the median of each figure
READS = 20


def main() -> None:
    """Measure and write the result."""
    need("cv2")
    from _environment import machine, write_result

    environment = machine()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        ordinary = Path(name) / "ordinary.jpg"
        ordinary.write_bytes(photograph())
        for title, make in BOMBS.items():
            bomb = Path(name) / "bomb"
            bomb.write_bytes(make())
            result[title] = {"bytes": bomb.stat().st_size}
            for program in PROGRAMS:
                runs = [measured(program, ordinary, bomb) for _ in range(REPEATS)]
                numbers = {key: sorted(run[key] for run in runs)[REPEATS // 2] for key in runs[0] if key != "says"}
                result[title][program] = {"says": runs[0]["says"], **numbers}
            print(title, json.dumps(result[title], indent=2), flush=True)
    print(f"wrote {write_result('bombs', result, environment)}")


def measured(program: str, ordinary: Path, bomb: Path) -> dict[str, Any]:
    """What `child` prints."""
    line = [sys.executable, __file__, program, str(ordinary), str(bomb)]
    output = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def child(program: str, ordinary: Path, bomb: Path) -> None:
    """Read an ordinary picture, then the bomb; print what became of it, and at what cost."""
    read = PROGRAMS[program]
    assert read(ordinary, 1) == "ok"
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    resident, (says, *times) = memory("VmRSS"), timed(read, bomb, 1)
    peak = memory("VmHWM") - resident
    if says != "ok":
        _, *times = timed(read, bomb, READS)
    milliseconds = dict(zip(("milliseconds", "milliseconds of processor time"), map(rounded, times), strict=True))
    print(json.dumps({"says": says, **milliseconds, "megabytes": rounded(max(peak, 0) / 1e6)}))


def timed(read: Callable[[Path, int], str], path: Path, count: int) -> tuple[str, float, float]:
    """The verdict, and milliseconds a read: wall, processor."""
    processor, wall = processor_seconds(), time.perf_counter()
    says = read(path, count)
    scale = 1000 / count
    return says, (time.perf_counter() - wall) * scale, (processor_seconds() - processor) * scale


def memory(key: str) -> int:
    """Bytes of this process, now or at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def ingest(path: Path, count: int) -> str:
    """The rows' status."""
    from ddx._core import Ingest, Input, PartEnd

    (path.parent / "list.csv").write_text("path,caption\n" + f"{path.name},x\n" * count, encoding="utf-8")
    source = Input([str(path.parent / "list.csv")])
    with Ingest(source, sizes=[(512, 512)], part_rows=count, batch_size=1, parts=[0], decode_threads=1) as items:
        (end,) = [item for item in items if isinstance(item, PartEnd)]
    (status,) = set(end.status)
    return status


def pillow(path: Path, count: int) -> str:
    """Open and convert."""
    from PIL import Image

    for _ in range(count):
        try:
            Image.open(path).convert("RGB")
            says = "ok"
        except Exception as error:
            says = type(error).__name__
    return says


def opencv(path: Path, count: int) -> str:
    """Read."""
    import cv2

    for _ in range(count):
        try:
            says = "ok" if cv2.imread(str(path)) is not None else "None"
        except cv2.error as error:
            says = type(error).__name__
    return says


def png(side: int, rows: int) -> bytes:
    """A black RGB picture that declares `side` rows and holds the first `rows`."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 + side * 3)) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg() -> bytes:
    """A photograph whose header declares 65535x65535."""
    encoded = bytearray(photograph())
    frame = encoded.index(b"\xff\xc0")  # baseline frame: marker, length, precision, height, width
    encoded[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    return bytes(encoded)


PROGRAMS: dict[str, Callable[[Path, int], str]] = {"ingest": ingest, "Pillow": pillow, "OpenCV": opencv}
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 25000x25000, whole": lambda: png(25_000, 25_000),
    "JPEG that declares 65535x65535": jpeg,
    "PNG that declares 100 GB of pixels": lambda: png(185_000, 10),
}

if __name__ == "__main__":
    if sys.argv[1:]:
        child(sys.argv[1], *map(Path, sys.argv[2:]))
    else:
        main()
