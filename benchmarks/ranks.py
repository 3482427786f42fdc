"""Two `torchrun` ranks of precompute on two cores, one thread each, beside one such rank: rows a second of wall time.

Local JPEGs of 1024x768 through `ddx precompute --teacher sana-tiny`. Each launch is done with few rows and with many,
and the difference counts: starting Python is not what is compared. Needs two cores that nothing else uses.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _environment import machine, write_result
from _peers import photograph, rounded

FEW, MANY, PART_ROWS = 128, 1152, 64
ROUNDS = 3


def main() -> None:
    """Measure and write the result."""
    environment = machine()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed")
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_list(folder, MANY)
        for _ in range(ROUNDS):
            for ranks in rates:
                few, many = (seconds(folder, ranks=ranks, rows=rows) for rows in (FEW, MANY))
                rates[ranks].append((MANY - FEW) / (many - few))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    result: dict[str, Any] = {
        "rows per second": {f"{ranks} ranks": rounded(statistics.median(of)) for ranks, of in rates.items()},
        "two ranks over one": {
            "median": rounded(statistics.median(ratios)),
            "min": rounded(min(ratios)),
            "max": rounded(max(ratios)),
        },
        "rounds": ROUNDS,
    }
    print(result)
    print(f"wrote {write_result('ranks', result, environment)}")


def write_list(folder: Path, rows: int) -> None:
    """Sixteen files, each in the list many times."""
    encoded = photograph()
    for number in range(16):
        (folder / f"{number}.jpg").write_bytes(encoded)
    lines = (json.dumps({"path": f"{row % 16}.jpg", "caption": f"a red circle, {row}"}) + "\n" for row in range(rows))
    (folder / "list.jsonl").write_text("".join(lines), encoding="utf-8")


def seconds(folder: Path, *, ranks: int, rows: int) -> float:
    """Wall time of one launch; every rank computes and decodes on one thread, and has a core of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = ["-m", "ddx.cli.main", "precompute", str(folder / "list.jsonl"), "--teacher", "sana-tiny"]
        settings = {"out": f"{out}/s.zarr", "limit": rows, "part-rows": PART_ROWS, "decode-threads": 1}
        flags = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:ranks]))
        began = time.monotonic()
        subprocess.run(
            ["taskset", "-c", cores, sys.executable, *launch, *command, *flags],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        return time.monotonic() - began


if __name__ == "__main__":
    main()
