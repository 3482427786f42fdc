"""What is drawn at a look: fixed prompts from fixed noises, by the student as its export draws; by the teacher once."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddx.evaluation.scores import are_scenes, scene_scores
from ddx.methods.base import Method
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.watch import measures
from ddx.watch.exposure import exposure_bias
from ddx.watch.vector import Drawn, measured

ROWS = 8  # pictures at a time, as in the grids of samples
NOISE = -2  # the "step" of the noises: no step of training, nor that of the grids


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is drawn at every look: P prompts from S noises each.

    prompts, conditions: P of them, the conditions of one row. resolution: pixels a side. steps: the step counts of the
    student. reference_steps: the teacher's.
    """

    prompts: Sequence[str]
    conditions: Sequence[Condition]
    null: Condition
    resolution: int
    num_seeds: int
    steps: Sequence[int]
    reference_steps: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a look has seen: numbers that JSON can hold, and the pictures uint8 `[P, S, H, W, 3]` by step count."""

    values: dict[str, Any]
    pictures: dict[int, Tensor]


def innermost(method: Method) -> Method:
    """Return the method itself, without what is added around it."""
    while isinstance(inner := getattr(method, "method", None), Method):
        method = inner
    return method


class Easel:
    """Draws a subject; the teacher's pictures are kept in `cache`, a folder, for other runs too."""

    def __init__(self, method: Method, subject: Subject, cache: Path) -> None:
        self.method, self.subject, self.cache = method, subject, cache
        self.inner = innermost(method)
        self.teacher: Teacher = method.teacher
        device, num = self.teacher.device, len(subject.prompts) * subject.num_seeds
        # float32 as in training: on a CPU, autocast refuses to join the store's float16 to anything
        self.null = subject.null.to(device, torch.float32)
        self.conditions = [
            row.to(device, torch.float32) for row in subject.conditions for _ in range(subject.num_seeds)
        ]
        random = RandomNumbers(subject.seed, NOISE, range(num), device)
        shape = self.teacher.latent_shape(subject.resolution)
        self.noises = [random.normal(*shape) for _ in range(max(subject.steps))]

    @cached_property
    def reference(self) -> tuple[Tensor, Drawn]:
        """The teacher's latents, float32 `[N, C, h, w]`, and its pictures."""
        path = self.cache / f"{self._key()}.npz"
        kept = _load(path)
        if kept is None:
            latents = self._in_batches(self._teacher_draws)
            kept = latents.cpu().numpy(), self._decode(latents).numpy()
            _save(path, *kept)
        latents, pictures = (torch.from_numpy(values) for values in kept)
        return latents.to(self.teacher.device), Drawn.of(pictures)

    @cached_property
    def teacher_values(self) -> dict[str, float]:
        """The measures of the teacher's pictures."""
        pictures = self.reference[1]
        return {**measured(pictures, self.teacher.device), **self._marks(pictures.pictures)}

    def look(self, student: nn.Module) -> Seen:
        """Draw with `student`, which has the weights of the export, and measure."""
        target, theirs = self.reference
        values: dict[str, Any] = {"teacher": self.teacher_values, "student": {}}
        pictures: dict[int, Tensor] = {}
        for steps in self.subject.steps:
            latents = self._student_draws(student, steps)
            drawn = Drawn.of(self._decode(latents))
            pictures[steps] = drawn.pictures
            values["student"][str(steps)] = {
                **measured(drawn, self.teacher.device),
                "distance": float(measures.energy_distance(drawn.features, theirs.features)),
                **self._marks(drawn.pictures),
            }
            if steps == 1:
                values["ode_distance"] = float((latents - target).square().mean().sqrt())
                values["exposure_bias"] = exposure_bias(self.inner, latents, target, max(self.subject.steps))
        self.teacher.unload("vae")
        return Seen(values=values, pictures=pictures)

    def _marks(self, pictures: Tensor) -> dict[str, float]:
        """What the exact checker says of scenes; nothing of others."""
        prompts = self.subject.prompts
        if not are_scenes(prompts, self.subject.resolution):
            return {}
        captions = [prompt for prompt in prompts for _ in range(self.subject.num_seeds)]
        overall = scene_scores(pictures.flatten(0, 1).numpy(), captions)["overall"]
        return {} if overall is None else {"overall": overall}

    def _teacher_draws(self, rows: slice, condition: Condition) -> Tensor:
        return self.teacher.sample(
            condition,
            self.null,
            num_steps=self.subject.reference_steps,
            guidance=self._guidance,
            noise=self.noises[0][rows],
        )

    def _student_draws(self, student: nn.Module, num_steps: int) -> Tensor:
        return self._in_batches(
            lambda rows, condition: self.method.draw(student, [n[rows] for n in self.noises[:num_steps]], condition)
        )

    def _in_batches(self, draw: Callable[[slice, Condition], Tensor]) -> Tensor:
        slices = [slice(start, start + ROWS) for start in range(0, len(self.conditions), ROWS)]
        return torch.cat([draw(rows, Condition.cat(self.conditions[rows])) for rows in slices]).float()

    def _decode(self, latents: Tensor) -> Tensor:
        rows = torch.cat([self.teacher.decode(latents[i : i + 1]) for i in range(len(latents))])
        pictures: Tensor = rows.unflatten(0, (len(self.subject.prompts), self.subject.num_seeds))
        return pictures

    @property
    def _guidance(self) -> float | None:
        return getattr(self.inner, "export_guidance", None)

    def _key(self) -> str:
        """What decides the teacher's pictures."""
        facts = {
            "teacher": self.teacher.fingerprint(self.subject.resolution),
            "prompts": list(self.subject.prompts),
            "seeds": [self.subject.seed, self.subject.num_seeds],
            "steps": self.subject.reference_steps,
            "guidance": self._guidance,
            "dtype": str(self.teacher.dtype),
            "device": self.teacher.device.type,
            "torch": torch.__version__,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


Kept = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]


def _load(path: Path) -> Kept | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["latents"], file["pictures"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(path: Path, latents: np.ndarray[Any, Any], pictures: np.ndarray[Any, Any]) -> None:
    """Write by temporary file and rename. A cache that cannot be written is no reason to lose the pictures."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, latents=latents, pictures=pictures)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
