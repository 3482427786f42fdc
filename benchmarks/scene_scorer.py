"""A scorer of the bundled scenes for `ddx distill --reward FOLDER`, trained in minutes, and its held-out accuracy.

python benchmarks/scene_scorer.py --out runs/scene-scorer
"""

import argparse
from pathlib import Path

import torch

from ddx.bench.scene_scorer import accuracy, save, train

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/scene-scorer"))
    parser.add_argument("--seconds", type=float, default=150.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = train(arguments.seconds, log=lambda line: print(line, flush=True))
    print(accuracy(model, 1000), save(model, arguments.out))
