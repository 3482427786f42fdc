"""What each part of a method is worth on the bundled teacher: one part changed, all else and the seed equal.

    python benchmarks/ablations.py --keep FOLDER                     # all of them, one seed: about an hour
    python benchmarks/ablations.py --ablation sid --ablation heads --keep FOLDER

Each ablation ends with a picture, ablation-<name>.png: a line of eight captions from the teacher in twenty steps, then
a line from each student in one, in the order of the table. Students are made and scored as those of methods.py; with
the same --keep both share them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _students import ALONG_ITS_PATH, Student, arguments_of, run
from PIL import Image

from ddx.cli.console import emit
from ddx.sampling.grid import save_grid
from ddx.sampling.pipeline import StudentPipeline
from ddx.sampling.teacher import draw_with_teacher
from ddx.teachers.registry import load_teacher

SID, DMD2, LADD = ("--method", "sid"), ("--method", "dmd2"), ("--method", "ladd")
# Ablation, then student: the flags over its method's recipe. Names of methods alone are the recipe itself.
ABLATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "sid": {
        "sid": SID,
        "sid alpha=1.2": (*SID, "--alpha", "1.2"),
        "sid gradients=fake": (*SID, "--score-gradients", "fake"),
        "sid gradients=none": (*SID, "--score-gradients", "none"),
    },
    "adversarial": {
        "scm": ("--method", "scm"),
        "sana-sprint": ("--method", "sana-sprint"),
        "dmd2": DMD2,
        "dmd2 gan=0": (*DMD2, "--gan-weight", "0"),
    },
    "heads": {
        "ladd": LADD,
        "ladd heads=fft": (*LADD, "--heads", "fft"),
        "ladd heads=attention": (*LADD, "--heads", "attention"),
    },
    "times": {
        "scm": ("--method", "scm"),
        "scm times=adaptive": ("--method", "scm", "--time-adaptive"),
        "diff-instruct": ("--method", "diff-instruct"),
        "diff-instruct times=adaptive": ("--method", "diff-instruct", "--time-adaptive"),
    },
    # flow matching on the data alone is what fine-tuning the teacher would do; both others jump along their path
    "twinflow": {
        "fine-tuning": ("--method", "shortcut", "--bootstrap-share", "0", "--velocity-from", "data"),
        "rcgm": ("--method", "rcgm"),
        "twinflow": ALONG_ITS_PATH,
    },
}
PICTURES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLUMNS = 8
TEACHER_STEPS = 20


def main() -> int:
    """Make and score the students of the ablations that are asked for, and draw them."""
    parser = arguments_of(__doc__)
    parser.add_argument("--ablation", action="append", choices=sorted(ABLATIONS), help="may be repeated (default: all)")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of the pictures")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        arguments.keep = arguments.keep or Path(temporary)
        return compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit status."""
    chosen = arguments.ablation or list(ABLATIONS)
    students = {
        (name, seed): Student(name=name, flags=flags, seed=seed)
        for ablation in chosen
        for name, flags in ABLATIONS[ablation].items()
        for seed in arguments.seed or [0]
    }
    status = run("ablations", [[student] for student in students.values()], arguments)
    seed = (arguments.seed or [0])[0]
    for ablation in chosen:
        folders = [arguments.keep / "students" / students[name, seed].folder for name in ABLATIONS[ablation]]
        if all((folder / "model_index.json").is_file() for folder in folders):
            emit(str(draw(folders, arguments.pictures / f"ablation-{ablation}.png")))
    return status


def draw(students: list[Path], path: Path) -> Path:
    """Write the picture of an ablation; return its path."""
    teacher = load_teacher("sana-tiny")
    prompts, seeds = teacher.validation_prompts[:COLUMNS], range(COLUMNS)
    conditions, null = teacher.encode_text(prompts), teacher.null_condition()
    first = draw_with_teacher(teacher, conditions, null, list(seeds), steps=TEACHER_STEPS)
    pictures = [Image.fromarray(picture) for picture in first]
    for student in students:
        pictures += StudentPipeline(student).draw(prompts, seeds, steps=1)
    return save_grid(path, pictures, columns=COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
