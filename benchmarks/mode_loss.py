"""Does the watching of a run see lost modes, on a teacher that is known exactly, before a quarter of them is gone?

    python benchmarks/mode_loss.py --seed 0            # runs what is missing, one line of JSON each
    python benchmarks/mode_loss.py --report

The ground is that of `mixtures.py`: eight modes on a circle, drawn in one step from the same recipes, and from settings
that drive them into mode loss. A look draws 32 points, as many as pictures of a watched run, and ddx's own alarms judge
three of its measures, in a scale in which the teacher's points are as far apart as pictures of `sana-tiny` are in their
feature space. 4000 further points are the truth, which no alarm sees: their coverage is the sum over modes of their
share on the mode, counted up to what it should be. A run is lost where coverage has lost a quarter of its best at two
looks in a row.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from _collapse_report import Limits, in_words, judged
from _environment import machine, write_result
from _watched_runs import Case, parser_of, rows_of, run_missing
from torch import Tensor

from ddx.bench.mixtures.gate import Modes
from ddx.bench.mixtures.grounds import GROUNDS
from ddx.bench.mixtures.recipes import RECIPES
from ddx.bench.mixtures.run import Student, make_batch, method_of
from ddx.cli.console import emit
from ddx.metrics.pictures import energy_distance, spread
from ddx.training.distributed import Ranks
from ddx.training.trainer import Trainer
from ddx.watch.alarms import RULES

FILE = "mode_loss.jsonl"
STEPS, EVERY, WARM_UP = 400, 20, 40
POINTS, TRUTH = 32, 4000
PICTURE_SPREAD = 1.81  # of the pictures that the teacher of `collapses.py` draws
WATCHED = ("variety_features", "distance", "fake_score_loss")

CONSTANT = {"lr_schedule": "constant"}
CASES = (
    Case("lcm", "lcm", False),
    Case("lcm, rate x100", "lcm", True, {**CONSTANT, "learning_rate": 0.3}),
    Case("diff-instruct", "diff-instruct", False),
    Case("diff-instruct, rate x25", "diff-instruct", True, {**CONSTANT, "learning_rate": 1e-2}),
    Case("dmd", "dmd", False),
    Case("dmd, rate x25, no regression", "dmd", True, {**CONSTANT, "learning_rate": 1e-2, "regression_weight": 0.0}),
    Case("sid", "sid", False),
    Case("sid, rate x50, alpha 1.5", "sid", True, {**CONSTANT, "alpha": 1.5, "learning_rate": 1e-2}),
    Case("shortcut", "shortcut", False),
    Case(
        "add, slow heads, rate x10",
        "add",
        True,
        {**CONSTANT, "discriminator_rate": 0.2, "learning_rate": 4e-3, "r1_weight": 0.0},
    ),
    Case("add", "add", False),
)


def main() -> int:
    """Run what is missing, or report."""
    arguments = parser_of(__doc__, CASES).parse_args()
    path = arguments.out / FILE
    torch.set_num_threads(1)
    if not arguments.report:
        run_missing(CASES, arguments, path, run)
    rows = rows_of(path) or sys.exit(f"no run in {path}")
    found = judged(rows, Limits([rule for rule in RULES if rule.name in WATCHED]))
    write_result("mode_loss", found, rows[0]["machine"], arguments.out)
    emit(in_words("with the limits of ddx", found))
    return 0


def run(case: Case, seed: int) -> dict[str, Any]:
    """Train one student, look at it on the way, and return its row."""
    recipe = RECIPES[case.method]
    teacher = GROUNDS["flow"].teacher(features=recipe.features)
    settings = {**recipe.settings, "train_steps": STEPS, "warmup_steps": WARM_UP, "seed": seed, "num_steps": 1}
    names = {"ema_half_life": min(float(recipe.settings.get("ema_half_life", 5000.0)), 5000.0)}
    known = settings if "num_steps" in recipe.settings else {k: v for k, v in settings.items() if k != "num_steps"}
    method, config = method_of(case.method, teacher, **{**known, **names, **case.settings})
    torch.manual_seed(config.seed)
    trainer = Trainer(method, config, Ranks(), torch.float32)
    student = Student(method, trainer, 0.0, ())
    theirs = _reference(student)
    looks = [_look(student, 0, {}, theirs)]
    for step in range(config.train_steps):
        trainer.step(step, [make_batch(teacher, config, step)])
        if (step + 1) % EVERY == 0:
            looks.append(_look(student, step + 1, trainer.meter.read(lambda value: value), theirs))
    return {
        **{"name": case.name, "seed": seed, "collapse": case.collapse, "method": case.method},
        **{"settings": case.settings, "steps": STEPS, "warm_up": WARM_UP, "machine": machine(), "looks": looks},
    }


def _reference(student: Student) -> Tensor:
    """Return points of the mixture itself, `[1, N, D]`: what the teacher's ODE ends in from noises of another seed."""
    generator = torch.Generator().manual_seed(17)
    return student.teacher.mixture.draw(torch.full((POINTS,), student.teacher.mixture.num_classes), generator)[None]


def _look(student: Student, step: int, signals: dict[str, Any], theirs: Tensor) -> dict[str, Any]:
    own = student.draw(1, num_samples=POINTS, seed=23).double()[None]
    modes = Modes.of(student.teacher.mixture)
    scale = PICTURE_SPREAD / float(spread(theirs.double()))
    values = {
        "variety_features": scale * float(spread(own)),
        "distance": scale * float(energy_distance(own, theirs.double())),
    }
    points = student.draw(1, num_samples=TRUTH, seed=11).double()
    nearest, mode = torch.cdist(points, modes.means).min(dim=1)
    shares = torch.bincount(mode[nearest <= 4.0 * modes.stds[mode]], minlength=len(modes.means)) / len(points)
    return {
        **{"step": step, "judged_steps": 1, "signals": {k: v for k, v in signals.items() if v is not None}},
        **{"teacher": {"variety_features": PICTURE_SPREAD}, "student": {"1": values}},
        "scores": {"coverage": round(float(shares.clamp(max=1.0 / len(modes.means)).sum()), 4)},
    }


if __name__ == "__main__":
    sys.exit(main())
