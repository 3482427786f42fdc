"""Distillation, start to end: what `ddx distill` does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddx.config import to_dict
from ddx.data.loader import Loader
from ddx.data.store import Store
from ddx.errors import DdxError, UsageError
from ddx.methods.base import Batch, Method
from ddx.methods.draws import Draws
from ddx.methods.registry import load_method
from ddx.progress import NullProgress, Progress
from ddx.run_record import read_run, versions, write_run
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.registry import load_teacher
from ddx.training.checkpoint import Snapshot, load_checkpoint, save_checkpoint
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks, join
from ddx.training.ema import EMA
from ddx.training.estimate import Estimate, estimate_run
from ddx.training.export import export_student
from ddx.training.find_store import find_store, require_pairs
from ddx.training.grids import SampleGrid
from ddx.training.interruption import Interrupted, StopSignal
from ddx.training.starting_weights import starting_weights
from ddx.training.student_folder import StudentFolder, choose_folder
from ddx.training.tracking import Clock, Metrics, peak_memory_bytes
from ddx.training.trainer import Swapped, Trainer
from ddx.workspace import Workspace


def distill(
    config: DistillConfig,
    method_config: Any,
    *,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> Path:
    """Distil a student and return its folder, a plain diffusers pipeline; the same call goes on with an unfinished one.

    Raises UsageError for settings that do not fit together, DdxError for weights or data that are not there, and
    Interrupted (a KeyboardInterrupt), with the state saved, when the process is asked to stop.
    """
    with join(config.device) as ranks, StopSignal() as stop:
        progress = progress if progress is not None and ranks.is_first else NullProgress()
        workspace = workspace or Workspace()
        run = _prepare(config, method_config, workspace, ranks, progress)
        if run.folder.finished:
            progress.log(f"{run.folder.path} is finished already")
            return run.folder.path
        trainer = Trainer(run.method, config, ranks, run.dtype, _start(run, workspace))
        start = _resume(run, trainer)
        _record(run, trainer, start, finished=False)
        grid, clock = _sample_grid(run), Clock(_seconds_before(run, start))
        progress.start("distill", config.train_steps, "step")
        progress.advance(start)
        if start == 0:
            _draw_grid(run, trainer, grid, clock, 0)
        for step, data in zip(range(start, config.train_steps), _batches(run, start), strict=False):
            trainer.step(step, list(_micro_batches(run, data, step)))
            _log(run, trainer, clock, step + 1, progress)
            stopping = ranks.any(stop.requested)
            if stopping or _due(step + 1, config.checkpoint_every, config.train_steps):
                _save(run, trainer, clock, step + 1)
            if stopping and step + 1 < config.train_steps:
                progress.log(f"stopped after step {step + 1}; the same command goes on from there")
                raise Interrupted
            if _grid_due(config, step + 1):
                _draw_grid(run, trainer, grid, clock, step + 1)
        _finish(run, trainer, clock, progress)
        return run.folder.path


def plan(
    config: DistillConfig, method_config: Any, *, workspace: Workspace | None = None
) -> tuple[StudentFolder, Path, Estimate]:
    """Return the folder, the store and the cost that `distill` would have, without writing anything."""
    with join(config.device) as ranks:
        workspace = workspace or Workspace()
        run = _prepare(config, method_config, workspace, ranks, NullProgress())
        _start(run, workspace)
        return run.folder, run.store.path, estimate_run(run.method, config, run.teacher, run.dtype, ranks.world)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is fixed for the whole run."""

    config: DistillConfig
    method_config: Any
    method: Method[Any]
    teacher: Teacher
    store: Store
    num_samples: int
    null: Condition
    folder: StudentFolder
    metrics: Metrics
    ranks: Ranks
    dtype: torch.dtype

    @property
    def rows_per_rank(self) -> int:
        return self.config.batch_size // self.ranks.world

    @property
    def settings(self) -> dict[str, Any]:
        return {**to_dict(self.config), **to_dict(self.method_config)}


def _prepare(config: DistillConfig, method_config: Any, workspace: Workspace, ranks: Ranks, progress: Progress) -> _Run:
    """Find the teacher, the store and the folder; every mistake of the user comes to light here."""
    if config.batch_size % ranks.world:
        raise UsageError(
            f"batch_size = {config.batch_size} does not divide over {ranks.world} processes",
            hint=f"--batch-size {math.ceil(config.batch_size / ranks.world) * ranks.world}",
        )
    dtype = _compute_dtype(config.dtype, ranks.device)
    teacher = load_teacher(config.teacher, device=ranks.device, dtype=dtype, resolution=config.resolution)
    method = load_method(config.method, method_config, teacher)
    settings = {**to_dict(config), **to_dict(method_config)}
    folder = ranks.share(
        choose_folder(config.out, workspace, settings, {"teacher": config.teacher, "method": config.method})
    )
    before = read_run(folder.path) if folder.resumed else None
    store, say = find_store(config, teacher, workspace, before, synthetic=method.reads_pairs)
    if method.reads_pairs:
        require_pairs(store, method.export_notes().get("guidance_range"))
    if ranks.is_first:
        progress.log(say)
        if folder.resumed and not folder.finished:
            where = folder.checkpoint.name if folder.checkpoint else "its start"
            progress.log(f"going on with the unfinished {folder.path} from {where}")
    num_samples = store.num_ok
    if num_samples < config.batch_size:
        raise UsageError(
            f"{store.path} holds {num_samples} usable pictures, fewer than batch_size = {config.batch_size}",
            hint=f"--batch-size {max(1, num_samples)}, or precompute more rows",
        )
    return _Run(
        config=config,
        method_config=method_config,
        method=method,
        teacher=teacher,
        store=store,
        num_samples=num_samples,
        null=store.null_condition().to(ranks.device, torch.float32),
        folder=folder,
        metrics=Metrics(folder.path),
        ranks=ranks,
        dtype=dtype,
    )


def _compute_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bf16": torch.bfloat16}[name]


def _start(run: _Run, workspace: Workspace) -> dict[str, torch.Tensor] | None:
    """Return the weights that the student begins with; none of a run whose checkpoint has them all."""
    return None if run.folder.checkpoint else starting_weights(run.config.from_student, run.teacher, workspace)


def _resume(run: _Run, trainer: Trainer) -> int:
    """Restore the newest checkpoint, if there is one, and return the step to go on from."""
    if run.folder.checkpoint is None:
        return 0
    snapshot = load_checkpoint(run.folder.checkpoint)
    before, now = snapshot.state.get("num_samples"), run.num_samples
    if before not in (None, now):
        raise DdxError(
            f"{run.store.path} has {now} usable pictures, and had {before} when this run began: their order is another",
            hint="give --out for a new run",
        )
    trainer.restore(snapshot)
    return int(snapshot.state["step"])


def _seconds_before(run: _Run, start: int) -> float:
    """Return the seconds that the run has taken up to `start`; the metrics of what will be done again are dropped."""
    if not run.ranks.is_first:
        return 0.0
    return run.metrics.resume(start if run.folder.checkpoint is not None else -1)


def _batches(run: _Run, position: int) -> Iterator[Any]:
    """Yield this rank's rows of the global batches from `position` on, for ever."""
    loader = Loader(
        run.store,
        run.config.batch_size,
        seed=run.config.seed,
        rank=run.ranks.rank,
        world=run.ranks.world,
        position=position,
        prefetch=run.config.prefetch,
    )
    try:
        yield from loader
    finally:
        loader.close()


def _micro_batches(run: _Run, data: Any, step: int) -> Iterator[Batch]:
    """Yield this rank's rows as batches of at most `micro_batch_size`, with the random numbers that are theirs."""
    device, rows = run.ranks.device, len(data.latents)
    first = run.ranks.rank * run.rows_per_rank
    size = run.config.micro_batch_size or rows
    x0 = run.teacher.scale(data.latents.to(device, non_blocking=True).float())
    # float32 like the latents: on a CPU, autocast refuses to join the store's float16 to anything.
    condition = data.condition.to(device, torch.float32)
    noise = run.store.noise(data.rows).to(device) if run.method.reads_pairs else None
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        indices = range(first + part.start, first + part.stop)
        yield Batch(
            x0=x0[part],
            condition=condition.index(part),
            null=run.null,
            draws=Draws(run.config.seed, step, indices, device),
            step=step,
            progress=step / run.config.train_steps,
            noise=None if noise is None else noise[part],
        )


def _log(run: _Run, trainer: Trainer, clock: Clock, step: int, progress: Progress) -> None:
    """Count the step, and every `log_every` steps write a line of metrics."""
    config = run.config
    if step % config.log_every and step != config.train_steps:
        progress.advance(1)
        return
    values = trainer.meter.read(run.ranks.mean)
    num_steps = step % config.log_every or config.log_every
    line: dict[str, Any] = {"step": step, "images": step * config.batch_size, **values}
    line["lr"] = config.learning_rate * trainer.learning_rate_factor(step - 1)
    line["skipped"] = int(trainer.skipped)
    line["seconds"] = round(clock.seconds(), 3)
    line["images_per_s"] = round(clock.rate(num_steps * config.batch_size), 2)
    line["peak_memory_bytes"] = peak_memory_bytes(run.ranks.device)
    loss = line.get("loss")
    shown = {"dropped": round(line["dropped"], 5)} if line.get("dropped") else {}
    progress.advance(1, loss=round(loss, 5) if loss is not None else "not finite", images=line["images"], **shown)
    if run.ranks.is_first:
        run.metrics.write(line)


def _save(run: _Run, trainer: Trainer, clock: Clock, step: int) -> None:
    if not run.ranks.is_first:
        return
    snapshot = trainer.snapshot()
    state = {
        "step": step,
        "position": step,  # one global batch a step; noise and times follow from (seed, step) alone
        "num_samples": run.num_samples,  # whose order follows from the seed
        "images": step * run.config.batch_size,
        "seconds": clock.seconds(),
        "config": run.settings,
        "versions": versions(),
        **snapshot.state,
    }
    folder = run.folder.path / "checkpoints"
    save_checkpoint(folder, step, Snapshot(snapshot.tensors, state), keep=run.config.keep_checkpoints)


def _sample_grid(run: _Run) -> SampleGrid | None:
    config = run.config
    if not run.ranks.is_first or not 0 < config.sample_every <= config.train_steps:
        return None
    _, conditions = run.store.validation()
    shape = run.teacher.latent_shape(config.resolution)
    return SampleGrid(run.method, config, conditions, run.null, shape) if conditions else None


def _grid_due(config: DistillConfig, step: int) -> bool:
    return config.sample_every > 0 and (step % config.sample_every == 0 or step == config.train_steps)


def _draw_grid(run: _Run, trainer: Trainer, grid: SampleGrid | None, clock: Clock, step: int) -> None:
    if grid is None:
        return
    with clock.pause(), trainer.exported_student() as student, trainer.autocast():
        values = grid.write(run.folder.path / "grids" / f"step-{step:06d}.png", student)
    run.metrics.write({"step": step, "images": step * run.config.batch_size, **values})


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _record(run: _Run, trainer: Trainer, step: int, *, finished: bool, **more: Any) -> None:
    """Write run.json: at the start, so that a stopped run is found again, and at the end."""
    if not run.ranks.is_first:
        return
    config = run.config
    record = {
        "kind": run.method.makes,
        "teacher": config.teacher,
        "teacher_source": run.teacher.source,
        "teacher_revision": run.teacher.revision,
        "teacher_licence": run.teacher.licence,
        "teacher_fingerprint": run.teacher.fingerprint(config.resolution),
        "method": config.method,
        "resolution": config.resolution or run.teacher.default_resolution,
        "store": str(run.store.path.resolve()),
        "synthetic_share": round(run.store.synthetic_share, 4),
        "images_seen": step * config.batch_size,
        "seed": config.seed,
        **run.method.export_notes(),
        **more,
        "config": run.settings,
        "versions": versions(),
    }
    write_run(run.folder.path, record, finished=finished)


def _finish(run: _Run, trainer: Trainer, clock: Clock, progress: Progress) -> None:
    """Export the student; run.json says "finished" last, when everything else is in place."""
    if run.ranks.is_first:
        student = trainer.final_student()
        for name, average in trainer.more.items():
            _export_average(run, student, name, average)
        notes = export_student(run.method, student, run.folder.path, run.config.export_dtype, run.dtype)
        costs = {
            **notes,
            "seconds": round(clock.seconds(), 1),
            "skipped_steps": int(trainer.skipped),
            "peak_memory_bytes": peak_memory_bytes(run.ranks.device),
        }
        _record(run, trainer, run.config.train_steps, finished=True, **costs)
        if run.method.makes == "student":
            _write_card(run.folder.path)
    progress.finish()
    run.ranks.wait()


def _export_average(run: _Run, student: torch.nn.Module, name: str, average: EMA) -> None:
    """Write the student with one more average of its weights to averages/<name>, a pipeline of its own."""
    folder = run.folder.path / "averages" / name.replace(":", "-")
    with Swapped(student, average) as averaged:
        notes = export_student(run.method, averaged, folder, run.config.export_dtype, run.dtype)
    record = {"kind": run.method.makes, "teacher": run.config.teacher, "method": run.config.method, "average": name}
    write_run(folder, {**record, **run.method.export_notes(), **notes}, finished=True)


def _write_card(folder: Path) -> None:
    from ddx.sampling.card import write_card

    write_card(folder)
