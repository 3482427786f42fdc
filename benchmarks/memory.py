"""What `ddx precompute` takes of memory with a table of a million rows, beside one of a hundred thousand.

Both begin with the same hundred local JPEGs of 1024x768; the other rows name files that are not there. So the pictures
and the networks (`sana-tiny`) cost the same, and the difference of the peaks is what a row costs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pyarrow as pa
import pyarrow.parquet as pq
from _environment import machine, write_result
from _peers import photograph

ROWS = (100_000, 1_000_000)
PICTURES = 100
ROW_GROUP = 50_000
CHILD = "import resource, sys; from ddx.cli.main import run; code = run(sys.argv[1:]); "
CHILD += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"


def main() -> None:
    """Measure and write the result."""
    environment, result = machine(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(PICTURES):
            (folder / f"{number}.jpg").write_bytes(photograph())
        for rows in ROWS:
            result[f"{rows} rows"] = precompute(folder, rows)
            print(f"{rows} rows: {result[f'{rows} rows']}")
    few, many = (result[f"{rows} rows"]["peak bytes"] for rows in ROWS)
    result["bytes a further row"] = round((many - few) / (ROWS[1] - ROWS[0]), 1)
    print(f"bytes a further row: {result['bytes a further row']}")
    print(f"wrote {write_result('memory', result, environment)}")


def precompute(folder: Path, rows: int) -> dict[str, Any]:
    """One run in a process of its own: its peak, its time, and what the store says of the rows."""
    table = write_table(folder, rows)
    store = folder / f"{rows}.zarr"
    words = ["precompute", str(table), "--teacher", "sana-tiny", "--out", str(store), "--device", "cpu", "--quiet"]
    began = time.monotonic()
    out = subprocess.run(
        [sys.executable, "-c", CHILD, *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    seconds = time.monotonic() - began
    record = json.loads((store / "run.json").read_text())
    assert (record["ok"], record["failed"]) == (PICTURES, {"missing_file": rows - PICTURES}), record
    return {
        "peak bytes": int(out.split()[-1]),
        "table bytes": table.stat().st_size,
        "seconds": round(seconds, 1),
        "parts": -(-rows // 1024),
    }


def write_table(folder: Path, rows: int) -> Path:
    """Paths and captions in row groups, as LAION's files have them."""
    path = folder / f"{rows}.parquet"
    schema = pa.schema([("path", pa.string()), ("caption", pa.string()), ("similarity", pa.float32())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, ROW_GROUP):
            numbers = range(first, min(rows, first + ROW_GROUP))
            columns = {
                "path": [f"{n}.jpg" if n < PICTURES else f"not-there/{n}.jpg" for n in numbers],
                "caption": [f"a photograph of number {n}, with a caption of some length" for n in numbers],
                "similarity": [n % 97 / 97 for n in numbers],
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
    return path


if __name__ == "__main__":
    main()
