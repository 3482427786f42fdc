"""Drawing the pictures that are scored: one set of prompts and seeds for all; a teacher's are kept for next time."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ddx.evaluation.kept_arrays import load_arrays, save_arrays
from ddx.progress import Progress
from ddx.sampling.teacher import draw_with_teacher
from ddx.teachers.samplers.sampler import OWN_SAMPLER, TeacherSampler

if TYPE_CHECKING:
    from ddx.sampling.pipeline import StudentPipeline
    from ddx.teachers.base import Teacher
    from ddx.teachers.condition import Condition
    from ddx.teachers.size import Size


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures uint8 `[N, H, W, 3]` and the seconds that each took (the median over batches, decoding included)."""

    images: NDArray[np.uint8]
    seconds_per_image: float


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What everybody draws: N prompts with their conditions and seeds."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    conditions: Sequence[Condition]
    null: Condition
    resolution: Size


class Painter:
    """Draws the requests in batches, and keeps a teacher's pictures in `cache`, a folder."""

    def __init__(self, requests: Requests, batch_size: int, cache: Path, progress: Progress) -> None:
        self.requests, self.batch_size, self.cache, self.progress = requests, batch_size, cache, progress

    def teacher(self, teacher: Teacher, steps: int, guidance: float, sampler: TeacherSampler = OWN_SAMPLER) -> Drawn:
        """Return the teacher's pictures: those kept from an earlier evaluation if nothing that shapes them changed."""
        path = self.cache / f"{self._key(teacher, steps, guidance, sampler)}.npz"
        kept = _load(path)
        if kept is not None and len(kept.images) == len(self.requests.prompts):
            self.progress.advance(len(kept.images))
            return kept

        def draw(rows: slice) -> NDArray[np.uint8]:
            return draw_with_teacher(
                teacher,
                self.requests.conditions[rows],
                self.requests.null,
                self.requests.seeds[rows],
                steps=steps,
                guidance=guidance,
                resolution=self.requests.resolution,
                batch_size=self.batch_size,
                sampler=sampler,
            )

        drawn = self._in_batches(draw)
        save_arrays(path, images=drawn.images, seconds_per_image=np.asarray(drawn.seconds_per_image))
        return drawn

    def student(self, student: StudentPipeline, steps: int) -> Drawn:
        """Return the student's pictures, from the call of its model card with the prompts encoded beforehand."""
        from ddx.teachers.condition import Condition

        def draw(rows: slice) -> NDArray[np.uint8]:
            condition = Condition.cat(list(self.requests.conditions[rows]))
            seeds = self.requests.seeds[rows]
            return student.draw_conditions(condition, seeds, steps, resolution=self.requests.resolution)

        return self._in_batches(draw)

    def _in_batches(self, draw: Callable[[slice], NDArray[np.uint8]]) -> Drawn:
        images, seconds = [], []
        for start in range(0, len(self.requests.prompts), self.batch_size):
            began = time.perf_counter()
            images.append(draw(slice(start, start + self.batch_size)))
            seconds.append((time.perf_counter() - began) / len(images[-1]))
            self.progress.advance(len(images[-1]))
        return Drawn(images=np.concatenate(images), seconds_per_image=statistics.median(seconds))

    def _key(self, teacher: Teacher, steps: int, guidance: float, sampler: TeacherSampler) -> str:
        import torch

        facts = {
            "teacher": [teacher.network_identity(), teacher.fingerprint()],
            "steps": steps,
            "guidance": guidance,
            "resolution": self.requests.resolution,
            "dtype": str(teacher.dtype),
            "device": teacher.device.type,
            "torch": torch.__version__,
            "requests": list(zip(self.requests.prompts, self.requests.seeds, strict=True)),
            "batch_size": self.batch_size,
            **sampler.identity(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _load(path: Path) -> Drawn | None:
    kept = load_arrays(path, "images", "seconds_per_image")
    return None if kept is None else Drawn(images=kept[0], seconds_per_image=float(kept[1]))
