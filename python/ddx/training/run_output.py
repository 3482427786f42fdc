"""The end of a distillation: the exported student, its further averages, and the record of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddx.data.buckets import described
from ddx.errors import DdxError
from ddx.progress import Progress
from ddx.run_record import versions, write_run
from ddx.training.ema import EMA, Weights
from ddx.training.export import export_student
from ddx.training.run import Run
from ddx.training.tracking import Clock, peak_memory_bytes
from ddx.training.trainer import Trainer
from ddx.training.watching import Watch

BEST = "best"


def record_run(run: Run, step: int, *, finished: bool, **more: Any) -> None:
    """Write run.json: at the start, so that a stopped run is found again, and at the end."""
    if not run.ranks.is_first:
        return
    write_run(run.folder.path, _record(run, step, more), finished=finished)


def _record(run: Run, step: int, more: Mapping[str, Any]) -> dict[str, Any]:
    config = run.config
    return {
        "kind": run.method.makes,
        "teacher": config.teacher,
        **run.teacher.facts(config.resolution),
        "method": config.method,
        "store": str(run.store.path.resolve()),
        **described(run.store.buckets),
        "synthetic_share": round(run.store.synthetic_share, 4),
        "images_seen": step * config.batch_size,
        "seed": config.seed,
        **run.method.export_notes(),
        **more,
        **({"history": run.history} if run.history else {}),
        "config": run.settings,
        "preset_settings": run.preset_settings,
        "versions": versions(),
    }


def finish_run(run: Run, trainer: Trainer, step: int, watch: Watch, clock: Clock, progress: Progress) -> None:
    """Export the student after `step`; run.json says "finished" last, when everything else is in place."""
    trainer.final_student()
    for name, average in trainer.more.items():
        _export_average(run, trainer, name, average)
    export_best(run, trainer, watch, progress)
    notes: dict[str, Any] = {}
    with trainer.whole_student() as student:
        if student is not None:
            notes = export_student(run.method, student, run.folder.path, run.config.export_dtype, run.dtype)
    if run.ranks.is_first:
        skipped = int(trainer.skipped)
        if skipped:
            progress.log(
                f"warning: {skipped} updates in {step} steps were skipped, their gradient was not "
                "finite; a lower learning rate may help"
            )
        costs = {
            **notes,
            **watch.as_record(),
            "seconds": round(clock.seconds(), 1),
            "skipped_steps": skipped,
            "peak_memory_bytes": peak_memory_bytes(run.ranks.device),
        }
        watch.write_page(finished=True)
        record_run(run, step, finished=True, **costs)
        if run.method.makes == "student":
            _write_card(run.folder.path)
    progress.finish()
    run.ranks.wait()


def _export_average(run: Run, trainer: Trainer, name: str, average: EMA) -> None:
    """Write the student with one more average of its weights to averages/<name>, a pipeline of its own."""
    folder = run.folder.path / "averages" / name.replace(":", "-")
    with trainer.whole_student(average) as student:
        if student is None:
            return
        notes = export_student(run.method, student, folder, run.config.export_dtype, run.dtype)
    record = {"kind": run.method.makes, "teacher": run.config.teacher, "method": run.config.method, "average": name}
    write_run(folder, {**record, **run.method.export_notes(), **notes}, finished=True)


def export_best(run: Run, trainer: Trainer, watch: Watch, progress: Progress) -> None:
    """Write the student of the best look to best/, a pipeline of its own with a card, if the run keeps it.

    What an export folds in may stay in the student: call it when no step is left.
    """
    weights: dict[str, Tensor] | None = None
    if watch.on and watch.best.step is not None:
        try:
            weights = watch.best.weights()
        except DdxError as error:
            progress.log(f"warning: {error}; best/ is not written")
    if not run.ranks.any(weights is not None):
        return
    folder, step = run.folder.path / BEST, watch.best.step if watch.on else None
    with trainer.whole_student(Weights(weights or {})) as student:
        if student is None or step is None:
            return
        if watch.best.path is not None:
            run.metrics.weights(step, watch.best.path)
        notes = export_student(run.method, student, folder, run.config.export_dtype, run.dtype)
    record = _record(run, step, {**notes, "best": watch.best.as_record()})
    write_run(folder, record, finished=True)
    if run.method.makes == "student":
        _write_card(folder)
    best = watch.best
    progress.log(f"{folder}: the student of step {step}, the best by {best.metric} ({best.value:.4g})")


def _write_card(folder: Path) -> None:
    from ddx.sampling.card import write_card

    write_card(folder)
