"""Departures from published recipes on the bundled teacher: the published form beside ddx's, all else equal.

    python benchmarks/departures.py --num-images 400 --keep FOLDER      # all of them, one seed: about two hours
    python benchmarks/departures.py --departure tdm --keep FOLDER

docs/recipes.md lists the departures. Where ddx has no setting for the published form, _published.py has it. Students
are made and scored as those of methods.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _students import ALONG_ITS_PATH, Student, arguments_of, run

DMD2, PCM, TDM = ("--method", "dmd2"), ("--method", "pcm"), ("--method", "tdm")
FOUR_STEPS = (*DMD2, "--num-steps", "4")
GOES_ON = (*DMD2, "--fake-from", "last-stage")
TWINFLOW = (*ALONG_ITS_PATH, "--velocity-from", "data", "--guidance-min", "2", "--guidance-max", "2")
REGRESSION = Student(name="regression", flags=("--method", "reflow", "--noise-share", "1"))
FIRST_STAGE = Student(name="dmd2 gan=0", flags=(*DMD2, "--gan-weight", "0"))
# Lines of students that are made one after another, by what they are about.
DEPARTURES: dict[str, list[list[Student]]] = {
    "states": [
        [Student(name="dmd2 four steps", flags=FOUR_STEPS)],
        [Student(name="dmd2 four steps, stored states", flags=FOUR_STEPS, form="stored states")],
    ],
    "discriminator": [
        [Student(name="dmd2", flags=DMD2)],
        [Student(name="dmd2, head on the teacher", flags=DMD2, form="head on the teacher")],
        [Student(name="dmd2, one noise", flags=DMD2, form="one noise")],
    ],
    "start": [
        [Student(name="dmd2", flags=DMD2)],
        [REGRESSION, Student(name="dmd2 after regression", flags=DMD2, after=REGRESSION)],
    ],
    "second stage": [
        [
            FIRST_STAGE,
            Student(name="dmd2 after dmd2 gan=0", flags=DMD2, after=FIRST_STAGE),
            Student(name="dmd2 after dmd2 gan=0, its fake score", flags=GOES_ON, after=FIRST_STAGE),
        ],
    ],
    "pcm": [
        [Student(name="pcm", flags=PCM)],
        [Student(name="pcm gan=0.1", flags=(*PCM, "--gan-weight", "0.1", "--discriminator-rate", "5"))],
    ],
    # 900 of 1000 timesteps of PixArt-alpha: sigma / (alpha + sigma) = 0.984
    "tdm": [
        [Student(name="tdm", flags=TDM)],
        [Student(name="tdm from 0.984", flags=(*TDM, "--start-time", "0.984"))],
    ],
    # the short recipe keeps its own small step and decay of the target: the published ones are for many more steps
    "twinflow form": [
        [Student(name="twinflow", flags=("--method", "twinflow"))],
        [Student(name="twinflow along its path", flags=ALONG_ITS_PATH)],
    ],
    "twinflow": [
        [Student(name="twinflow of data", flags=(*TWINFLOW, "--null-from", "teacher"))],
        [Student(name="twinflow of data, own null caption", flags=(*TWINFLOW, "--null-from", "own"))],
    ],
}


def main() -> int:
    """Make and score the students that are asked for."""
    parser = arguments_of(__doc__)
    names = sorted(DEPARTURES)
    parser.add_argument("--departure", action="append", choices=names, help="may be repeated (default: all)")
    arguments = parser.parse_args()
    lines = {
        (line[-1].name, seed): [seeded(student, seed) for student in line]
        for seed in arguments.seed or [0]
        for departure in arguments.departure or DEPARTURES
        for line in DEPARTURES[departure]
    }
    return run("departures", list(lines.values()), arguments)


def seeded(student: Student, seed: int) -> Student:
    """Return a student, and with it the one before it, with another seed."""
    after = None if student.after is None else seeded(student.after, seed)
    return replace(student, seed=seed, after=after)


if __name__ == "__main__":
    sys.exit(main())
