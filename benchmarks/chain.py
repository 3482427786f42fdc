"""How far one step of the bundled teacher goes when one method begins where another has come to.

    python benchmarks/chain.py --seed 0 --seed 1 --seed 2 --num-images 400 --keep FOLDER     # three quarters of an hour

The distillations of the preset `chain`, each student scored beside the teacher. The first is that of methods.py, and
with the same --keep both share it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _students import Student, arguments_of, run

from ddx.cli.invocation import find_config
from ddx.cli.pipeline import read_pipeline

OF_THE_BENCH = ("teacher", "preset", "from_student")


def main() -> int:
    """Make and score the students."""
    arguments = arguments_of(__doc__).parse_args()
    return run("chain", [line(seed) for seed in arguments.seed or [0]], arguments)


def line(seed: int) -> list[Student]:
    """Return the students of the preset's distillations in their order, each after the one before it."""
    students: list[Student] = []
    for command, settings in read_pipeline(find_config("chain")):
        if command != "distill":
            continue
        own = {name: value for name, value in settings.items() if name not in OF_THE_BENCH}
        flags = tuple(word for name, value in own.items() for word in ("--set", f"{name}={value}"))
        before = students[-1] if students else None
        name = str(own["method"]) if before is None else f"{before.name}, {own['method']}"
        students.append(Student(name=name, flags=flags, seed=seed, after=before))
    return students


if __name__ == "__main__":
    sys.exit(main())
