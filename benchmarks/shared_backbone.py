"""What the shared backbone saves: `ddx distill --method sid` with three networks, and as low-rank sets on one.

Student, fake score and teacher are SANA-600M's transformer with random weights and a part of its blocks, so that three
whole ones fit into the memory of a small machine. Both runs go through the command, each in a process of its own, whose
peak memory is reported. What neither can save, the libraries and the text encoder's width, is in both.

    python benchmarks/shared_backbone.py --layers 14         # 15 GB of memory, some minutes
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import measured
from _environment import machine, write_result
from _photographs import write_photographs

TESTS = Path(__file__).resolve().parents[1] / "tests" / "python"
RESOLUTION = 256
RANK = 64
MAKE = "from pathlib import Path; from pipelines import make_sana_600m; import sys; "
MAKE += "make_sana_600m(Path(sys.argv[1]), layers=int(sys.argv[2]))"
ARRANGEMENTS = {"three networks": (), f"shared backbone, rank {RANK}": ("--lora-rank", str(RANK))}


def main() -> None:
    """Make the pipeline, distil both ways, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="sid")
    parser.add_argument("--layers", type=int, default=14, help="transformer blocks, 28 at full size")
    arguments = parser.parse_args()
    environment, rows = machine(), dict[str, dict[str, Any]]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
        subprocess.run(
            [sys.executable, "-c", MAKE, "teacher", str(arguments.layers)], check=True, cwd=folder, env=environ
        )
        write_photographs(folder / "photographs.parquet")
        shared = ["--teacher", "./teacher", "--resolution", str(RESOLUTION), "--dtype", "bf16"]
        measured(["precompute", "photographs.parquet", *shared, "--batch-size", "1"], folder)
        steps = ["--train-steps", "2", "--batch-size", "1", "--sample-every", "0", "--checkpoint-every", "0"]
        for name, flags in ARRANGEMENTS.items():
            words = ["distill", "--method", arguments.method, *shared, *steps, *flags]
            rows[name] = measured([*words, "--out", name.split(",")[0].replace(" ", "-")], folder)
            print(f"{name}: {rows[name]['peak_memory_gib']} GiB, {rows[name]['seconds']} s")
    whole, one = (row["peak_memory_gib"] for row in rows.values())
    result = {"method": arguments.method, "layers": arguments.layers, "resolution": RESOLUTION, "rows": rows}
    print(f"ratio {one / whole:.2f}; written to {write_result('shared_backbone', result, environment)}")


if __name__ == "__main__":
    main()
