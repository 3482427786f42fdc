"""Nine methods on the bundled teacher, each with its own recipe, in a quarter of an hour of one core: which leads?

    python benchmarks/flagships.py --num-images 400 --keep FOLDER                # two hours and a half on one core
    python benchmarks/flagships.py --method sid --num-images 400 --keep FOLDER
    python benchmarks/flagships.py --times 4 --num-images 400 --keep FOLDER      # an hour each

All but `lcm` begin with one student of LCM, whose two minutes count. Students are made and scored as those of
methods.py, from a larger store. With `--times` every recipe but that start has so many times the steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _students import Student, arguments_of, run

NUM_ROWS = 12288
ALL = ("--dtype", "bf16", "--sample-every", "0")
LONG = ("--batch-size", "16", "--ema-half-life", "2000", "--ema-ramp-up", "none", "--checkpoint-every", "200")
# Steps in about a quarter of an hour of one core, the start among them, and what each method has for itself.
RECIPES: dict[str, tuple[int, tuple[str, ...]]] = {
    "lcm": (1200, ("--learning-rate", "5e-4")),
    "scm": (700, ("--learning-rate", "5e-4")),
    "shortcut": (1300, ("--learning-rate", "5e-4")),
    "sana-sprint": (500, ("--learning-rate", "5e-4")),
    "twinflow": (1200, ("--learning-rate", "5e-4")),
    "sid": (600, ("--learning-rate", "2e-4")),
    "sida": (350, ("--learning-rate", "2e-4")),
    "dmd2": (380, ("--learning-rate", "5e-4", "--num-steps", "4")),
    "decoupled-dmd": (600, ("--learning-rate", "5e-4")),
}


def main() -> int:
    """Make and score the students that are asked for."""
    parser = arguments_of(__doc__)
    parser.add_argument("--method", action="append", choices=list(RECIPES), help="may be repeated (default: all)")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="so many times the steps (default: 1)")
    arguments = parser.parse_args()
    seeds = arguments.seed or [0]
    starts = {seed: Student(name="start", flags=("--method", "lcm", *ALL), seed=seed) for seed in seeds}
    lines = [
        [flagship(method, starts[seed], arguments.times)] for seed in seeds for method in arguments.method or RECIPES
    ]
    return run("flagships", lines, arguments, first=list(starts.values()), num_rows=NUM_ROWS)


def flagship(method: str, start: Student, times: int) -> Student:
    """Return the student of a method, by its recipe with so many times the steps."""
    num_steps, flags = RECIPES[method]
    return Student(
        name=method if times == 1 else f"{method} times={times}",
        flags=("--method", method, *ALL, *LONG, "--train-steps", str(num_steps * times), *flags),
        seed=start.seed,
        after=None if method == "lcm" else start,
    )


if __name__ == "__main__":
    sys.exit(main())
