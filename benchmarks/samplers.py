"""Samplers of a teacher on mixtures that are known exactly: orders of convergence, and how near few steps come.

    python benchmarks/samplers.py        # a minute of one core

Orders are measured from 50 steps to 200 against the exact ODE, before the last step. Distances are energy distances to
points of the mixture, under a table of betas and noise prediction.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _environment import RESULTS, machine, write_result

from ddx.bench.mixtures.mixture import Mixture, circle
from ddx.bench.mixtures.solving import drawn, energy_distance, order_of, points
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.cli.console import emit
from ddx.teachers.samplers.names import OWN, SAMPLERS
from ddx.teachers.samplers.sampler import cannot_draw

NUM = 4000
COUNTS = (5, 10, 20, 50)
MIXTURES = {
    "circle": circle(),
    "gaussian": Mixture(torch.tensor([[0.4, -0.3]], dtype=torch.float64), 0.7, torch.zeros(1, dtype=torch.long)),
}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment = machine()
    orders, distances = [], []
    for process in ("flow", "vp-eps"):
        teacher = MixtureTeacher(circle(), process)
        for name, spec in SAMPLERS.items():
            if name != OWN and spec.deterministic and cannot_draw(name, teacher) is None:
                order, first, last = order_of(name, process)
                row = {"process": process, "sampler": name, "order": round(order, 2), "errors": [first, last]}
                orders.append(row)
                emit(f"{process:8} {name:14} order {order:.2f}")
    for kind, mixture in MIXTURES.items():
        wanted = points(mixture, NUM, seed=3)
        floor = energy_distance(points(mixture, NUM, seed=4), wanted)
        emit(f"{kind:8} fresh points   {floor:.5f}")
        for name in SAMPLERS:
            if name == OWN or cannot_draw(name, MixtureTeacher(mixture, "vp-eps")) is not None:
                continue
            found = [energy_distance(drawn(mixture, "vp-eps", name, steps, NUM), wanted) for steps in COUNTS]
            rounded = [round(value, 5) for value in found]
            distances.append({"mixture": kind, "sampler": name, "steps": COUNTS, "distances": rounded, "floor": floor})
            emit(f"{kind:8} {name:14} {rounded}")
    path = write_result("samplers", {"orders": orders, "distances": distances}, environment, arguments.out)
    emit(f"\n{path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
