"""Distillation, start to end: what `ddx distill` does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.checkpoints.folder import Snapshot, latest_checkpoint, load_checkpoint, or_damaged
from ddx.data.ranks import already_written
from ddx.errors import DdxError
from ddx.methods.base import FAKE, STUDENT
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.progress import NullProgress, Progress
from ddx.run_record import versions
from ddx.training.batches import batches, micro_batches
from ddx.training.config import DistillConfig
from ddx.training.distributed import join
from ddx.training.divergence import diverged
from ddx.training.estimate import estimate_seconds
from ddx.training.faster import what_is_on
from ddx.training.interruption import StopSignal, tells_what_is_saved
from ddx.training.run import Run, prepare_run
from ddx.training.run_folder import RunFolder
from ddx.training.run_grids import Grids, grid_due
from ddx.training.run_output import export_best, finish_run, record_run
from ddx.training.saver import Saver
from ddx.training.sole_writer import sole_writer
from ddx.training.starting_weights import Start, fake_of_last_stage, starting_weights
from ddx.training.tracking import Clock, peak_memory_bytes
from ddx.training.trainer import Trainer
from ddx.training.watching import Watch
from ddx.workspace import Workspace


def distill(
    config: DistillConfig,
    method_config: Any,
    discriminator: AddedDiscriminatorConfig | None = None,
    *,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
    said: Collection[str] = (),
) -> Path:
    """Distil a student and return its folder, a plain diffusers pipeline; the same call goes on with an unfinished one.

    `discriminator`: the settings of one that is added to a method without its own; None adds none.
    `said` are the settings that the user named for this call, and not a preset or a default: of a run in `config.out`,
    finished or not, the learning rate and the number of steps may then be others than before.
    Raises UsageError for settings that do not fit together, DdxError for weights or data that are not there, for a
    folder that another process writes to and for a run that diverges, and Interrupted (a KeyboardInterrupt), with the
    state saved, when the process is asked to stop.
    """
    with join(config.device) as ranks, ExitStack() as opened:
        progress = progress if progress is not None and ranks.is_first else NullProgress()
        workspace = workspace or Workspace()
        run = prepare_run(config, method_config, discriminator, workspace, ranks, progress, said)
        if run.folder.finished:
            progress.log(f"{run.folder.path} is finished already")
            return run.folder.path
        opened.enter_context(sole_writer(run.folder.path, ranks))
        if ranks.share(latest_checkpoint(run.checkpoints) != run.folder.checkpoint):
            raise already_written(run.folder.path)  # it went on between our look and our lock
        opened.enter_context(tells_what_is_saved(run.checkpoints))
        for name, state in _what_is_on(run).items():
            progress.log(f"{name} is {state}")
        begin_with = _start(run, workspace, progress)
        trainer = Trainer(run.method, config, ranks, run.dtype, begin_with, progress.log, run.sharding)
        del begin_with  # which may be whole networks
        start = _resume(run, trainer)
        record_run(run, start, finished=False)
        clock = Clock(_seconds_before(run, start))
        grids = Grids(run, clock, progress)
        opened.enter_context(_tracked(run, start, progress))
        watch = Watch(run, workspace, progress)
        progress.start("distill", config.train_steps, "step")
        progress.advance(start)
        if start == 0:
            grids.draw(0, trainer)
        with clock.pause():
            watch.begin(start, trainer)
        saver = Saver(
            run.checkpoints,
            ranks,
            keep=config.keep_checkpoints,
            in_background=config.async_checkpoints,
            say=progress.log,
        )
        with StopSignal(progress.log) as stop:
            end = _train(run, trainer, range(start, config.train_steps), stop, saver, grids, watch, clock, progress)
        finish_run(run, trainer, end, watch, clock, progress)
        return run.folder.path


def _train(
    run: Run,
    trainer: Trainer,
    steps: range,
    stop: StopSignal,
    saver: Saver,
    grids: Grids,
    watch: Watch,
    clock: Clock,
    progress: Progress,
) -> int:
    """Take these steps, or those up to where the watching ends the run; return the number that are done.

    A checkpoint that is due in a series of lost steps waits for the first that is not.
    """
    config, due, done = run.config, False, steps.start
    limit = min(config.max_lost_steps, config.train_steps)
    for step, data in zip(steps, batches(run, steps.start), strict=False):
        trainer.step(step, list(micro_batches(run, data, step)))
        done = step + 1
        _log(run, trainer, clock, watch, done, progress)
        with clock.pause():
            watch.after_step(done, trainer)
        saver.settle()
        stopping = run.ranks.any(stop.requested or watch.ends is not None)
        ended = stopping and not run.ranks.any(stop.requested)
        last = ended or done == config.train_steps
        due = due or stopping or _due(done, config.checkpoint_every, config.train_steps)
        if due or done % config.log_every == 0 or done % limit == 0:  # where the host waits for the device anyway
            lost = trainer.lost_in_a_row()
            if lost >= limit:
                saver.wait()
                export_best(run, trainer, watch, progress)
                rate = f"--out {run.folder.path} --set learning_rate={config.learning_rate / 4:.2g}"
                raise diverged(done, lost, run.checkpoints, f"the same command with a lower rate, {rate},")
            if due and (last or not lost):
                with watch.aside():
                    saver.start(done, _snapshot(run, trainer, clock, done))
                due = False
        if stopping and not last:
            saver.wait()
            raise KeyboardInterrupt
        if ended or grid_due(config, done):
            with watch.aside():
                grids.draw(done, trainer)
        if ended:
            break
    saver.wait()
    return done


@dataclass(frozen=True)
class Plan:
    """What a run would have: `on` says of `--compile` and `--cuda-graphs`, where asked for, whether they work, or why
    not; and of several processes how they share networks.
    """

    folder: RunFolder
    store: Path
    seconds: float
    on: Mapping[str, str]


def plan(
    config: DistillConfig,
    method_config: Any,
    discriminator: AddedDiscriminatorConfig | None = None,
    *,
    workspace: Workspace | None = None,
    said: Collection[str] = (),
) -> Plan:
    """Return what `distill` would read, write and cost, without writing anything."""
    with join(config.device) as ranks:
        workspace = workspace or Workspace()
        run = prepare_run(config, method_config, discriminator, workspace, ranks, NullProgress(), said)
        _start(run, workspace, NullProgress())
        seconds = estimate_seconds(run.method, config, run.teacher, run.dtype, ranks.world)
        return Plan(run.folder, run.store.path, seconds, _what_is_on(run))


def _what_is_on(run: Run) -> dict[str, str]:
    ranks, spread = run.ranks, run.sharding is not None
    shard = {"shard": str(run.shard_choice)} if ranks.world > 1 else {}
    return shard | what_is_on(run.config, run.method, ranks.device, ranks.world, spread=spread)


def _start(run: Run, workspace: Workspace, progress: Progress) -> dict[str, Start]:
    """Return the weights that networks begin with in place of the teacher's, by name; a checkpoint has them all."""
    if run.folder.checkpoint:
        return {}
    config, guidance = run.config, run.method.export_notes().get("guidance_range")
    found: dict[str, Start | None] = {
        STUDENT: starting_weights(config.from_student, run.teacher, workspace, guidance, progress.log),
        FAKE: None if config.fake_from == "teacher" else fake_of_last_stage(config.from_student, run.method, workspace),
    }
    return {name: weights for name, weights in found.items() if weights is not None}


def _resume(run: Run, trainer: Trainer) -> int:
    """Restore the newest checkpoint, if there is one, and return the step to go on from."""
    path = run.folder.checkpoint
    return 0 if path is None else run.ranks.agreed(lambda: _restore(run, trainer, path))


def _restore(run: Run, trainer: Trainer, path: Path) -> int:
    saved = load_checkpoint(path)
    before, now = saved.state.get("num_samples"), run.num_samples
    if before not in (None, now):
        raise DdxError(
            f"{run.store.path} has {now} usable pictures, and had {before} when this run began: their order is another",
            hint="give --out for a new run",
        )
    with or_damaged(path):
        trainer.restore(saved)
    return int(saved.state["step"])


def _seconds_before(run: Run, start: int) -> float:
    """Return the seconds that the run has taken up to `start`; the metrics of what will be done again are dropped."""
    if not run.ranks.is_first:
        return 0.0
    return run.metrics.resume(start if run.folder.checkpoint is not None else -1)


def _tracked(run: Run, start: int, progress: Progress) -> AbstractContextManager[None]:
    """Return the context in which the run's trackers follow its metrics and its grids."""
    if not run.config.track or not run.ranks.is_first:
        return nullcontext()
    from ddx.training.trackers.base import Tracked
    from ddx.training.trackers.follow import Trackers

    folder = run.folder.path
    about = Tracked(name=folder.name, folder=folder / "track", settings=run.settings, start=start)
    return run.metrics.tracked(Trackers(run.config.track, about, progress.log))


def _log(run: Run, trainer: Trainer, clock: Clock, watch: Watch, step: int, progress: Progress) -> None:
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
    watch.note(line)
    if run.ranks.is_first:
        run.metrics.write(line)


def _snapshot(run: Run, trainer: Trainer, clock: Clock, step: int) -> Snapshot:
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
    return Snapshot(snapshot.tensors, state)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)
