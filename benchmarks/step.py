"""Whole training steps of SANA-600M with random weights on this GPU: stock, torch.compile, ours, ours as a CUDA graph.

Without a GPU a tiny model shows that it runs, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result

from ddx.bench.config import StepConfig
from ddx.bench.step import run
from ddx.cli.displays import make_progress


def main() -> int:
    """Measure and write; 1 if a variant failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    environment = machine()

    def save(result: dict[str, Any]) -> None:
        if torch.cuda.is_available():
            write_result("step", result, environment, arguments.out)

    result = run(StepConfig(), make_progress(), save)
    for row in result["rows"]:
        print({name: value for name, value in row.items() if name != "shares"})
    return 0 if all("failure" not in row for row in result["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
