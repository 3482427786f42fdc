"""A run that is watched: when it looks, what it writes of a look, and when it ends the run.

A look never changes the run: its noises are its own, and the weights of the average are swapped in and out again. A
look that fails is a warning; three in a row end the watching and not the run. See `training/drawn_together.py` for one
that several ranks draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddx.errors import first_line
from ddx.methods.base import Method
from ddx.progress import Progress
from ddx.training.config import DistillConfig
from ddx.training.drawn_together import drawn_together
from ddx.training.run import Run
from ddx.training.trainer import Trainer
from ddx.watch.alarms import Alarm, alarms
from ddx.watch.best import Best, value_of
from ddx.watch.drawing import Easel, Seen, Subject
from ddx.watch.history import History
from ddx.watch.pace import Pace
from ddx.watch.page import write_watch_page
from ddx.watch.signals import Signals
from ddx.watch.strip import save_strip
from ddx.watch.validation import innermost, rows_at_once
from ddx.watch.words import look_line
from ddx.workspace import Workspace

Result = TypeVar("Result")
FOLDER = "watch"
MAX_FAILURES = 3


class Watch:
    """The looks of one run, which are the first rank's; where nothing is watched, none.

    Over ranks that share the networks' weights all of them draw, when the first one says so.
    """

    def __init__(self, run: Run, workspace: Workspace, progress: Progress) -> None:
        self.run, self.progress, config = run, progress, run.config
        self.ends: str | None = None
        self.failures = 0  # looks in a row
        self.together = run.sharding is not None
        self.on = self.draws = False
        if not is_watched(run.config, run.method) or not (run.ranks.is_first or self.together):
            return
        self.folder = run.folder.path / FOLDER
        self.steps = judged_steps(run.method)
        subject = _subject(run, sorted({1, self.steps, max(config.sample_steps)}))
        if subject is None:
            return
        self.draws, self.on = True, run.ranks.is_first
        self.has_teacher = False
        self.easel = Easel(run.method, subject, workspace.root / "cache" / "watch")
        self.pace = Pace(config.watch_every, config.watch_cost, config.train_steps)
        self.history, self.signals = History(run.folder.path), Signals()
        keep = config.keep_best != "none"
        self.best = Best(self.folder, config.keep_best if keep else "distance", keep=keep)
        self.said: set[str] = set()
        self.said_interval = config.watch_every
        self.mark = time.monotonic()

    def begin(self, step: int, trainer: Trainer) -> None:
        """Go on from `step`; a run that begins is looked at."""
        if not self.draws:
            return
        if self.on:
            try:
                self.history.resume(step if self.run.folder.checkpoint is not None else -1)
            except OSError as error:
                self._failed(step, error)
            if self.history.looks:
                self.pace.last = int(self.history.looks[-1]["step"])
        if self._agreed(self.on and step == 0 and not self.history.looks):
            self._look(0, trainer)
        self.mark = time.monotonic()

    def note(self, line: Mapping[str, Any]) -> None:
        """Remember a line of the metrics."""
        if self.on:
            self.signals.add(line)

    def after_step(self, step: int, trainer: Trainer) -> None:
        """Count a step, and look if it is time."""
        if not self.draws:
            return
        now = time.monotonic()
        self.pace.trained(now - self.mark, 1)
        self.mark = now
        if self._agreed(self.on and self.failures < MAX_FAILURES and self.pace.due(step)):
            self._look(step, trainer)
            self._say_pace()
            self.mark = time.monotonic()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, what is done is neither training nor a look: grids, checkpoints."""
        began = time.monotonic()
        yield
        if self.on:
            self.mark += time.monotonic() - began

    def as_record(self) -> dict[str, Any]:
        """Return what run.json says of the watching."""
        if not self.on:
            return {}
        found: dict[str, Any] = {} if self.ends is None else {"stopped": self.ends}
        if self.best.step is not None:
            found["best"] = self.best.as_record()
        raised = dict.fromkeys(alarm["name"] for look in self.history.looks for alarm in look["alarms"])
        share = self.pace.share
        found["watch"] = {"looks": len(self.history.looks), "share": None if share is None else round(share, 4)}
        return {**found, "alarms": list(raised)}

    def write_page(self, *, finished: bool) -> None:
        """Write the page a last time: a finished one does not refresh itself."""
        if self.on and self.history.looks:
            try:
                self._write_page(finished=finished)
            except Exception as error:
                self.progress.log(f"warning: the page of the looks was not written: {first_line(error)}")

    def _agreed(self, flag: bool) -> bool:
        """Return the first rank's word; it is asked where all of them draw."""
        return self.run.ranks.any(flag) if self.together else flag

    def _look(self, step: int, trainer: Trainer) -> None:
        device = self.run.ranks.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what the training still computes is not the look's
        error = None if self.has_teacher else self._first(trainer)
        began = time.monotonic()
        drawn: dict[int, Tensor] | None = None
        if self.together and error is None:
            drawn, error = self._drawn_together(trainer)
        look: dict[str, Any] | None = None
        if self.on:
            try:
                if error is not None:
                    raise error
                with _untouched_random_state(device):
                    seen = self._seen(trainer, drawn)
                look = self._judged(step, seen)
            except Exception as error:  # whatever it is: a run of days must not end by it
                self._failed(step, error)
        better = look is not None and step > 0 and self.best.is_better(self._value(look))
        tensors = trainer.exported_tensors() if self._agreed(better) and self.best.keep else {}
        if look is not None:
            try:
                self._write(step, look, seen, tensors if better else None, began)
                self.failures = 0
            except Exception as error:
                self._failed(step, error)
        self.pace.looked(step, time.monotonic() - began)

    def _drawn_together(self, trainer: Trainer) -> tuple[dict[int, Tensor] | None, Exception | None]:
        """Return what the student draws on every rank, or the error by which all of them failed."""
        untouched = _untouched_random_state(self.run.ranks.device)
        with untouched, trainer.exported_student() as student, trainer.autocast():
            return self._together(lambda: self.easel.draw(student), student)

    def _together(self, draw: Callable[[], Result], network: nn.Module) -> tuple[Result | None, Exception | None]:
        assert self.run.sharding is not None
        return drawn_together(draw, (network,), self.run.sharding, self.run.ranks)

    def _seen(self, trainer: Trainer, drawn: dict[int, Tensor] | None) -> Seen:
        if drawn is None:
            with trainer.exported_student() as student, trainer.autocast():
                drawn = self.easel.draw(student)
        # the student's own weights are in their place again: no copy is beside the decoder
        with trainer.autocast():
            return self.easel.measure(drawn)

    def _first(self, trainer: Trainer) -> Exception | None:
        """Have the teacher draw: once, and no part of what a look costs. Return the error by which all ranks failed."""
        began = time.monotonic()
        if self.together:
            if self._agreed(self.on and not self.easel.is_kept):
                with _untouched_random_state(self.run.ranks.device), trainer.autocast():
                    _, error = self._together(self.easel.draw_teacher, self.run.teacher.network())
                if error is not None:
                    return error
            self.has_teacher = True
        if not self.on:
            return None
        try:
            with _untouched_random_state(self.run.ranks.device), trainer.autocast():
                _ = self.easel.teacher_values
        except Exception:
            return None  # the look fails by it too, and says so
        self.has_teacher = True
        seconds = time.monotonic() - began
        if seconds > 1.0:
            self.progress.log(f"watch: the teacher's pictures of the validation prompts took {seconds:.1f} s, once")
        return None

    def _judged(self, step: int, seen: Seen) -> dict[str, Any]:
        return {
            "step": step,
            "images": step * self.run.config.batch_size,
            "judged_steps": self.steps,
            **seen.values,
            "signals": self.signals.read(),
        }

    def _value(self, look: Mapping[str, Any]) -> float | None:
        return value_of(look, self.best.metric, self.steps)

    def _write(
        self, step: int, look: dict[str, Any], seen: Seen, best: Mapping[str, Tensor] | None, began: float
    ) -> None:
        """Write a look down, and say what it shows; `best`: the weights, if they are the best so far."""
        found = alarms([*self.history.looks, look], self.steps, self._warm_up())
        if best is not None:
            value = self._value(look)
            assert value is not None
            self.best.take(step, value, best)
        look["alarms"] = [vars(alarm) for alarm in found]
        look["best"] = self.best.as_record()
        strip = save_strip(self.folder / f"step-{step:06d}.jpg", seen.pictures)
        if not (self.folder / "teacher.jpg").is_file():
            save_strip(self.folder / "teacher.jpg", {0: self.easel.reference[1].pictures})
        look["seconds"] = round(time.monotonic() - began, 3)
        self.history.add(look)
        self.run.metrics.look(look, strip)
        self.progress.log(look_line(look))
        self._say_alarms(found)
        self._end_if_asked(step, found)
        self.write_page(finished=False)

    def _warm_up(self) -> int:
        """Steps whose looks are no measure of the later ones; a student of another one's weights needs none."""
        config = self.run.config
        return 0 if config.from_student is not None else max(1, min(config.warmup_steps, config.train_steps // 5))

    def _say_alarms(self, found: list[Alarm]) -> None:
        for alarm in found:
            if alarm.name not in self.said:
                best = "" if self.best.step is None else f"; best so far is step {self.best.step}"
                self.progress.log(f"alarm: {alarm.reason}: {alarm.cure}{best}")
        self.said = {alarm.name for alarm in found}

    def _end_if_asked(self, step: int, found: list[Alarm]) -> None:
        config = self.run.config
        if step >= config.train_steps:
            return
        if config.stop_on_alarm and found:
            self.ends = f"an alarm at step {step}: {found[0].reason}"
        elif config.patience and self.best.step is not None:
            later = sum(1 for look in self.history.looks if look["step"] > self.best.step)
            if later >= config.patience:
                self.ends = f"{later} looks without a better {self.best.metric} than at step {self.best.step}"
        if self.ends is not None:
            self.progress.log(f"watch: the run ends by {self.ends}")

    def _say_pace(self) -> None:
        interval = self.pace.interval
        if interval > 1.25 * self.said_interval:
            seconds = self.pace.look_seconds[-1]
            self.progress.log(
                f"watch: a look takes {seconds:.2g} s; one in {interval} steps, not in {self.said_interval}, keeps all "
                f"of them within {100 * self.pace.cost:.3g} % of the time (--watch-cost)"
            )
            self.said_interval = interval

    def _failed(self, step: int, error: Exception) -> None:
        self.failures += 1
        self.progress.log(
            f"warning: the look at step {step} failed: {type(error).__name__}: {first_line(error)}; training goes on"
        )
        if self.run.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.failures == MAX_FAILURES:
            self.progress.log(f"warning: {self.failures} looks in a row failed, so none is taken any more")

    def _write_page(self, *, finished: bool) -> None:
        config = self.run.config
        title = f"{self.run.folder.path.name}: {config.method} of {Path(str(config.teacher)).name}"
        write_watch_page(
            self.run.folder.path, self.folder, title, self.history.looks, config.train_steps, finished=finished
        )


def judged_steps(method: Method) -> int:
    """Return the number of steps that the student is made to draw in: what alarms and the best are of."""
    inner: Any = innermost(method)
    return max(1, int(getattr(inner.config, "num_steps", 1)), len(getattr(inner, "own_times", ())))


def is_watched(config: DistillConfig, method: Method) -> bool:
    """Return whether a run looks at pictures."""
    return config.watch and config.watch_every <= config.train_steps and method.makes == "student"


def _subject(run: Run, steps: list[int]) -> Subject | None:
    """Return what is drawn; None of a store without validation prompts."""
    config = run.config
    prompts, conditions = run.store.validation()
    if not conditions:
        return None
    return Subject(
        prompts=prompts[: config.watch_prompts],
        conditions=conditions[: config.watch_prompts],
        null=run.null,
        resolution=config.resolution or run.teacher.default_resolution,
        num_seeds=config.watch_seeds,
        rows=rows_at_once(config.micro_batch_size),
        in_parts=config.look_decoder == "parts",
        steps=steps,
        reference_steps=config.reference_steps,
        seed=config.seed,
    )


@contextmanager
def _untouched_random_state(device: torch.device) -> Iterator[None]:
    """Within, torch's own random numbers may be drawn without those of the training being others."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
