"""The end of a distillation: the exported student, its further averages, and the record of how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddx.data.buckets import described
from ddx.progress import Progress
from ddx.run_record import versions, write_run
from ddx.training.ema import EMA, Swapped
from ddx.training.export import export_student
from ddx.training.run import Run
from ddx.training.tracking import Clock, peak_memory_bytes
from ddx.training.trainer import Trainer


def record_run(run: Run, step: int, *, finished: bool, **more: Any) -> None:
    """Write run.json: at the start, so that a stopped run is found again, and at the end."""
    if not run.ranks.is_first:
        return
    config = run.config
    record = {
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
    write_run(run.folder.path, record, finished=finished)


def finish_run(run: Run, trainer: Trainer, clock: Clock, progress: Progress) -> None:
    """Export the student; run.json says "finished" last, when everything else is in place."""
    if run.ranks.is_first:
        student = trainer.final_student()
        for name, average in trainer.more.items():
            _export_average(run, student, name, average)
        notes = export_student(run.method, student, run.folder.path, run.config.export_dtype, run.dtype)
        skipped = int(trainer.skipped)
        if skipped:
            progress.log(
                f"warning: {skipped} updates in {run.config.train_steps} steps were skipped, their gradient was not "
                "finite; a lower learning rate may help"
            )
        costs = {
            **notes,
            "seconds": round(clock.seconds(), 1),
            "skipped_steps": skipped,
            "peak_memory_bytes": peak_memory_bytes(run.ranks.device),
        }
        record_run(run, run.config.train_steps, finished=True, **costs)
        if run.method.makes == "student":
            _write_card(run.folder.path)
    progress.finish()
    run.ranks.wait()


def _export_average(run: Run, student: torch.nn.Module, name: str, average: EMA) -> None:
    """Write the student with one more average of its weights to averages/<name>, a pipeline of its own."""
    folder = run.folder.path / "averages" / name.replace(":", "-")
    with Swapped(student, average) as averaged:
        notes = export_student(run.method, averaged, folder, run.config.export_dtype, run.dtype)
    record = {"kind": run.method.makes, "teacher": run.config.teacher, "method": run.config.method, "average": name}
    write_run(folder, {**record, **run.method.export_notes(), **notes}, finished=True)


def _write_card(folder: Path) -> None:
    from ddx.sampling.card import write_card

    write_card(folder)
