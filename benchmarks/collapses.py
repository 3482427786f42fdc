"""Does the watching of a run see a collapse before its student is lost, and is it quiet in healthy runs?

    python benchmarks/collapses.py --keep FOLDER --seed 0           # runs what is missing, one line of JSON each
    python benchmarks/collapses.py --report                         # fits on one half of the runs, judges on the other

Every run goes on from one LCM student of the bundled teacher, whose scenes an exact checker marks: short runs of the
healthy recipes, and runs that are driven into a collapse. At every look the exported weights draw 128 held-out captions
too; the checker's marks and recall on these are the truth, and no alarm sees them: a run is lost where one of them has
lost a quarter of its best at two looks in a row, whatever its recipe was meant to do. `--keep` holds the store, the
student to start from and the runs; a run that stands in the result file is not made again, so a killed benchmark goes
on. `_collapse_report.py` has the figures.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _collapse_report import figures, report
from _command import measured
from _environment import machine, write_result
from _watched_runs import Case, parser_of, rows_of, run_missing
from torch import Tensor, nn

from ddx.cli.console import emit
from ddx.config import Settings
from ddx.errors import DdxError
from ddx.evaluation.features import extract
from ddx.evaluation.scores import scene_scores
from ddx.json_lines import read_steps
from ddx.metrics.precision_recall import precision_recall
from ddx.scenes.captions import parse_caption, sample_captions
from ddx.scenes.render import render
from ddx.training import watching
from ddx.training.distill import distill
from ddx.training.resolve import resolve
from ddx.watch.drawing import Easel, Seen, Subject
from ddx.workspace import Workspace

FILE = "collapses.jsonl"
ROWS = 2048
STEPS = 80
EVERY = 5
WARM_UP = 20
BATCH = {False: 8, True: 4}  # of recipes, and of runs that are driven into a collapse
CAPTIONS = 128
REFERENCES = 4


CONSTANT = {"lr_schedule": "constant"}
CASES = (
    Case("diff-instruct", "diff-instruct", False),
    Case("diff-instruct, high rate", "diff-instruct", True, {**CONSTANT, "learning_rate": 1e-3}),
    Case("lcm", "lcm", False),
    Case("lcm, rate x30", "lcm", True, {**CONSTANT, "learning_rate": 1.5e-2}),
    Case("sid", "sid", False),
    Case("sid, alpha 1.5", "sid", True, {**CONSTANT, "alpha": 1.5, "learning_rate": 5e-4}),
    Case("ladd", "ladd", False),
    Case("ladd, slow heads", "ladd", True, {**CONSTANT, "discriminator_rate": 1.0, "learning_rate": 5e-4}),
    Case("scm", "scm", False),
    Case(
        "diff-instruct, guidance x3",
        "diff-instruct",
        True,
        {**CONSTANT, "guidance_min": 6.0, "guidance_max": 6.0, "learning_rate": 3e-4},
    ),
    Case("dde", "dde", False),
    Case(
        "diff-instruct, slow fake score", "diff-instruct", True, {**CONSTANT, "fake_rate": 0.05, "learning_rate": 5e-4}
    ),
    Case("cd", "cd", False),
    Case("lcm, no average", "lcm", True, {**CONSTANT, "ema_half_life": 0.0, "learning_rate": 5e-3}),
    Case("dmd2", "dmd2", False),
    Case("dmd, high rate", "dmd", True, {**CONSTANT, "learning_rate": 1e-3}),
    Case("twinflow", "twinflow", False),
    Case("freeflow", "freeflow", False),
    Case("shortcut", "shortcut", False),
    Case("dmd", "dmd", False),
)


class ScoredEasel(Easel):
    """Draws held-out captions too at a look, and marks them: the truth beside what is watched."""

    def __init__(self, method: Any, subject: Subject, cache: Path) -> None:
        subject = replace(subject, steps=[watching.judged_steps(method)])  # what neither alarms nor marks look at
        super().__init__(method, subject, cache)
        self.captions = sample_captions(CAPTIONS, seed=1, split="held-out")
        encoded = self.teacher.encode_text(self.captions)
        self.held_out = Easel(
            method,
            Subject(
                prompts=self.captions,
                conditions=encoded,
                null=subject.null,
                resolution=subject.resolution,
                num_seeds=1,
                steps=subject.steps,
                reference_steps=subject.reference_steps,
                seed=12345,
            ),
            cache,
        )
        specs = [parse_caption(caption) for caption in self.captions]
        self.truth = np.concatenate([extract(render(specs, seed=i)) for i in range(REFERENCES)])

    def draw(self, student: nn.Module) -> dict[int, Tensor]:
        """See :meth:`Easel.draw`; what the held-out captions get is kept for :meth:`measure`."""
        self.held_out_latents = self.held_out.draw(student)
        return super().draw(student)

    def measure(self, drawn_latents: Mapping[int, Tensor]) -> Seen:
        """See :meth:`Easel.measure`; `scores` has the truth."""
        seen = super().measure(drawn_latents)
        (steps,) = self.subject.steps
        pictures = self.held_out._decode(self.held_out_latents[steps])[:, 0].numpy()
        precision, recall = precision_recall(self.truth, extract(pictures))
        overall = scene_scores(pictures, self.captions)["overall"]
        seen.values["scores"] = {"overall": overall, "recall": recall, "precision": precision}
        return seen


def main() -> int:
    """Run what is missing, or report."""
    parser = parser_of(__doc__, CASES)
    parser.add_argument("--keep", type=Path, help="folder for the store, the first student and the runs")
    arguments = parser.parse_args()
    path = arguments.out / FILE
    if not arguments.report:
        with ExitStack() as stack:
            kept = arguments.keep or stack.enter_context(TemporaryDirectory())
            folder = Path(kept).absolute()
            torch.set_num_threads(1)
            watching.Easel = ScoredEasel  # type: ignore[misc]
            run_missing(CASES, arguments, path, partial(run, folder=folder, start=prepare(folder)))
    rows = rows_of(path) or sys.exit(f"no run in {path}")
    write_result("collapses", figures(rows), rows[0]["machine"], arguments.out)
    emit(report(rows))
    return 0


def prepare(folder: Path) -> Path:
    """Make the store, and the student that all runs begin with; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "runs" / "data").is_dir():
        measured(["scenes", "scenes.parquet", "--rows", str(ROWS), "--seed", "1"], folder)
        measured(["precompute", "scenes.parquet", "--teacher", "sana-tiny"], folder)
    line = ["distill", "--method", "lcm", "--teacher", "sana-tiny", "--preset", "sana-tiny", "--out", "students/lcm"]
    measured([*line, "--seed", "0"], folder)  # one that is finished is left as it is
    return folder / "students" / "lcm"


def run(case: Case, seed: int, folder: Path, start: Path) -> dict[str, Any]:
    """Train one student and return its row."""
    out = folder / "collapses" / f"{case.name.replace(', ', '-').replace(' ', '-')}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    values = {
        "teacher": "sana-tiny",
        "preset": "sana-tiny",
        "method": case.method,
        "from_student": str(start),
        "data": str(next((folder / "runs" / "data").glob("*.zarr"))),
        "out": str(out),
        "seed": seed,
        "train_steps": STEPS,
        "batch_size": BATCH[case.collapse],
        "warmup_steps": WARM_UP,
        "sample_every": 0,
        "checkpoint_every": 0,
        "log_every": EVERY,
        "watch_every": EVERY,
        "watch_cost": 1e6,
        "watch_prompts": 8,
        "watch_seeds": 4,
        "max_lost_steps": 1000,
        **case.settings,
    }
    config, *of_method = resolve([Settings(values, "the benchmark")])
    began, error = time.process_time(), None
    try:
        distill(config, *of_method, workspace=Workspace(folder / "runs"))
    except DdxError as failure:
        error = str(failure)
    looks = read_steps(out / "watch.jsonl")
    if not looks:
        raise SystemExit(f"{case.name}: no look at its student worked; see {out}")
    shutil.rmtree(out, ignore_errors=True)
    return {
        **{"name": case.name, "seed": seed, "collapse": case.collapse, "method": case.method},
        **{
            "settings": case.settings,
            "steps": STEPS,
            "batch_size": BATCH[case.collapse],
            "processor_s": round(time.process_time() - began, 1),
        },
        **{"error": error, "machine": machine()},
        "looks": [_short(look) for look in looks],
    }


def _short(look: dict[str, Any]) -> dict[str, Any]:
    steps = str(look["judged_steps"])
    kept = {
        name: look.get(name) for name in ("step", "judged_steps", "ode_distance", "exposure_bias", "signals", "seconds")
    }
    whole = {**kept, "teacher": look["teacher"], "student": {steps: look["student"][steps]}, "scores": look["scores"]}
    return _rounded(whole)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
