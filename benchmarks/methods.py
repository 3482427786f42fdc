"""Every method on the bundled teacher, with one recipe each and one budget of pictures, scored by the exact checker.

    python benchmarks/methods.py --keep FOLDER                       # all of them, one seed: about two hours
    python benchmarks/methods.py --method sid --seed 0 --seed 1 --seed 2 --keep FOLDER

Students are made by `ddx distill --preset sana-tiny` and scored by `ddx evaluate`, beside the teacher, and beside plain
regression on the ends of the teacher's ODE. Each has one core. Rows that are measured again replace those of the result
file, the others stay; a student that stands in FOLDER already is scored again and not made again.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _students import Student, arguments_of, run

from ddx.methods.registry import METHODS

REGRESSION = "regression"  # on the ends of the teacher's ODE, from pure noise alone


def main() -> int:
    """Make and score the students that are asked for."""
    parser = arguments_of(__doc__)
    names = [*METHODS, REGRESSION]
    parser.add_argument("--method", action="append", choices=names, help="may be repeated (default: all)")
    arguments = parser.parse_args()
    students = [
        [Student(name=method, flags=flags_of(method), seed=seed)]
        for seed in arguments.seed or [0]
        for method in arguments.method or names
    ]
    return run("methods", students, arguments)


def flags_of(method: str) -> tuple[str, ...]:
    """The flags of `ddx distill` that choose a method."""
    return ("--method", "reflow", "--noise-share", "1") if method == REGRESSION else ("--method", method)


if __name__ == "__main__":
    sys.exit(main())
