"""The grids of a run: when one is drawn, and what becomes of one that fails. It is a warning, as of a look."""

from __future__ import annotations

import torch
from torch import Tensor

from ddx.errors import first_line
from ddx.progress import Progress
from ddx.training.config import DistillConfig
from ddx.training.drawn_together import drawn_together
from ddx.training.grids import SampleGrid
from ddx.training.run import Run
from ddx.training.tracking import Clock
from ddx.training.trainer import Trainer


class Grids:
    """The grids of one run, which the first rank draws; over ranks that share the networks' weights, all of them."""

    def __init__(self, run: Run, clock: Clock, progress: Progress) -> None:
        self.run, self.clock, self.progress = run, clock, progress
        self.grid = _sample_grid(run)

    def draw(self, step: int, trainer: Trainer) -> None:
        """Draw the grid of a step, unless the run has none."""
        if self.grid is None:
            return
        with self.clock.pause():
            drawn, error = self._drawn(self.grid, trainer)
            if drawn is not None:
                error = self._write(step, self.grid, drawn, trainer)
        if error is not None:
            self._failed(step, error)

    def _drawn(self, grid: SampleGrid, trainer: Trainer) -> tuple[dict[int, Tensor] | None, Exception | None]:
        """Return the student's latents by step count, or the error by which all ranks that draw failed."""
        run = self.run
        if run.sharding is None:
            try:
                with trainer.autocast():
                    _ = grid.reference
                with trainer.exported_student() as student, trainer.autocast():
                    return grid.draw(student), None
            except Exception as failure:  # whatever it is: a run of days must not end by it
                return None, failure.with_traceback(None)  # whose frames keep what there was no room for
        with trainer.autocast():
            _, error = drawn_together(lambda: grid.reference, (run.teacher.network(),), run.sharding, run.ranks)
        if error is not None:
            return None, error
        with trainer.exported_student() as student, trainer.autocast():
            return drawn_together(lambda: grid.draw(student), (student,), run.sharding, run.ranks)

    def _write(self, step: int, grid: SampleGrid, drawn: dict[int, Tensor], trainer: Trainer) -> Exception | None:
        """Write the grid when the student's own weights are in their place again; no rank waits for another here."""
        run = self.run
        path = run.folder.path / "grids" / f"step-{step:06d}.png"
        try:
            with trainer.autocast():
                values = grid.write(path if run.ranks.is_first else None, drawn)
            if run.ranks.is_first:
                run.metrics.show(step, "grids", path)
                run.metrics.write({"step": step, "images": step * run.config.batch_size, **values})
        except Exception as failure:
            return failure.with_traceback(None)
        return None

    def _failed(self, step: int, error: Exception) -> None:
        if self.run.ranks.is_first:
            what = f"{type(error).__name__}: {first_line(error)}"
            self.progress.log(f"warning: the grid at step {step} failed: {what}; training goes on")
        if self.run.ranks.device.type == "cuda":
            torch.cuda.empty_cache()


def grid_due(config: DistillConfig, step: int) -> bool:
    """Return whether a grid is drawn after a step."""
    return config.sample_every > 0 and (step % config.sample_every == 0 or step == config.train_steps)


def _sample_grid(run: Run) -> SampleGrid | None:
    config = run.config
    draws = run.ranks.is_first or run.sharding is not None  # whose weights all ranks gather
    if not draws or not 0 < config.sample_every <= config.train_steps:
        return None
    _, conditions = run.store.validation()
    shape = run.teacher.latent_shape(config.resolution)
    return SampleGrid(run.method, config, conditions, run.null, shape) if conditions else None
