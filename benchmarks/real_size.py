"""SANA-600M at its real size with random weights: precompute of 4 images at 512 px, 2 steps of each method in bf16.

Everything goes through the commands that a user types, each in a process of its own, whose peak memory is reported. A
method of several trained networks runs on the shared backbone, low-rank; whole networks of it need more than 24 GB.

    python benchmarks/real_size.py                                   # LCM: 2 GB of disk, 17 GB of memory, minutes
    python benchmarks/real_size.py --method sid --method scm --keep FOLDER      # the pipeline is made once

Rows that are measured again replace those of the result file; the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from _command import measured
from _environment import RESULTS, machine, write_result
from _photographs import write_photographs

from ddx.methods.registry import METHODS, TRAINED

LORA_RANK = 64
NUM_IMAGES = 4
RESOLUTION = 512


def main() -> None:
    """Make the pipeline, run the commands, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for the pipeline, which is made once")
    parser.add_argument("--method", action="append", choices=sorted(METHODS), help="may be repeated (default: lcm)")
    arguments = parser.parse_args()
    environment = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        teacher = folder / "sana-600m-random"
        if not (teacher / "model_index.json").exists():
            made = "from pathlib import Path; from pipelines import make_sana_600m; import sys"
            subprocess.run(
                [sys.executable, "-c", f"{made}; make_sana_600m(Path(sys.argv[1]))", str(teacher)],
                check=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        write_photographs(folder / "photographs.parquet")
        shutil.rmtree(folder / "runs", ignore_errors=True)  # a finished store or student would not be made again
        shared = ["--teacher", f"./{teacher.name}", "--resolution", str(RESOLUTION), "--dtype", "bf16"]
        precompute = measured(["precompute", "photographs.parquet", *shared, "--batch-size", "1"], folder)
        rows = _known()
        for method in arguments.method or ["lcm"]:
            shutil.rmtree(folder / "runs" / "students", ignore_errors=True)
            several = sum(name in TRAINED for name in METHODS[method].networks) > 1
            rows[method] = {
                "lora_rank": LORA_RANK if several else 0,
                **measured(
                    [
                        *("distill", "--method", method, *shared, "--train-steps", "2", "--batch-size", "1"),
                        *("--sample-every", "0", "--checkpoint-every", "0"),
                        *(["--lora-rank", str(LORA_RANK)] if several else []),
                    ],
                    folder,
                ),
            }
            result = {"images": NUM_IMAGES, "resolution": RESOLUTION, "precompute": precompute, "distill": rows}
            print(json.dumps(rows[method], indent=2))
            print(f"written to {write_result('real_size', result, environment)}")


def _known() -> dict[str, Any]:
    """The rows of the result file, by method."""
    path = RESULTS / "real_size.json"
    rows: dict[str, Any] = json.loads(path.read_text())["result"]["distill"] if path.is_file() else {}
    return rows if "command" not in rows else {"lcm": {"lora_rank": 0, **rows}}


if __name__ == "__main__":
    main()
