"""What is drawn at a look: fixed prompts from fixed noises, by the student as its export draws; by the teacher once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.evaluation.kept_arrays import load_arrays, save_arrays
from ddx.evaluation.scores import are_scenes, scene_scores
from ddx.methods.base import Method
from ddx.metrics import pictures as measures
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.watch.exposure import exposure_bias
from ddx.watch.validation import ROWS, Validation, innermost, ode_distance
from ddx.watch.vector import Drawn, measured

NOISE = -2  # the "step" of the noises: no step of training, nor that of the grids


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is drawn at every look: P prompts from S noises each.

    prompts, conditions: P of them, the conditions of one row. resolution: pixels a side. rows: pictures at a time.
    in_parts: whether the decoder takes little of the device. steps: the step counts of the student. reference_steps:
    the teacher's.
    """

    prompts: Sequence[str]
    conditions: Sequence[Condition]
    null: Condition
    resolution: int
    num_seeds: int
    rows: int = ROWS
    in_parts: bool = False
    steps: Sequence[int]
    reference_steps: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a look has seen: numbers that JSON can hold, and the pictures uint8 `[P, S, H, W, 3]` by step count."""

    values: dict[str, Any]
    pictures: dict[int, Tensor]


class Easel:
    """Draws a subject; the teacher's pictures are kept in `cache`, a folder, for other runs too."""

    def __init__(self, method: Method, subject: Subject, cache: Path) -> None:
        self.subject, self.cache, self.inner = subject, cache, innermost(method)
        self.teacher: Teacher = method.teacher
        self.validation = Validation(
            method,
            [row for row in subject.conditions for _ in range(subject.num_seeds)],
            subject.null,
            self.teacher.latent_shape(subject.resolution),
            most_steps=max(subject.steps),
            seed=subject.seed,
            stream=NOISE,
            rows=subject.rows,
            in_parts=subject.in_parts,
        )
        self._teacher_latents: Tensor | None = None  # once they are drawn here

    @property
    def is_kept(self) -> bool:
        """Whether the teacher's pictures need not be drawn."""
        return self._kept() is not None

    def draw_teacher(self) -> Tensor:
        """Return the teacher's latents, drawn once; ranks over which its network is spread draw them together."""
        if self._teacher_latents is None:
            self._teacher_latents = self.validation.teacher_draws(self.subject.reference_steps)
        return self._teacher_latents

    @cached_property
    def reference(self) -> tuple[Tensor, Drawn]:
        """The teacher's latents, float32 `[N, C, h, w]`, and its pictures."""
        kept = None if self._teacher_latents is not None else self._kept()
        if kept is None:
            latents = self.draw_teacher()
            kept = [latents.cpu().numpy(), self._decode(latents).numpy()]
            save_arrays(self._path, latents=kept[0], pictures=kept[1])
        latents, pictures = (torch.from_numpy(values) for values in kept)
        return latents.to(self.teacher.device), Drawn.of(pictures)

    @cached_property
    def teacher_values(self) -> dict[str, float]:
        """The measures of the teacher's pictures."""
        pictures = self.reference[1]
        return {**measured(pictures, self.teacher.device), **self._marks(pictures.pictures)}

    def draw(self, student: nn.Module) -> dict[int, Tensor]:
        """Return the latents that `student` draws, by step count."""
        return {steps: self.validation.student_draws(student, steps) for steps in self.subject.steps}

    def measure(self, drawn_latents: Mapping[int, Tensor]) -> Seen:
        """Return what is to be seen of drawn latents, by step count."""
        target, theirs = self.reference
        values: dict[str, Any] = {"teacher": self.teacher_values, "student": {}}
        pictures: dict[int, Tensor] = {}
        for steps, latents in drawn_latents.items():
            drawn = Drawn.of(self._decode(latents))
            pictures[steps] = drawn.pictures
            values["student"][str(steps)] = {
                **measured(drawn, self.teacher.device),
                "distance": float(measures.energy_distance(drawn.features, theirs.features)),
                **self._marks(drawn.pictures),
            }
            if steps == 1:
                values["ode_distance"] = ode_distance(latents, target)
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

    def _decode(self, latents: Tensor) -> Tensor:
        rows = self.validation.decode(latents)
        pictures: Tensor = rows.unflatten(0, (len(self.subject.prompts), self.subject.num_seeds))
        return pictures

    @property
    def _path(self) -> Path:
        return self.cache / f"{self._key()}.npz"

    def _kept(self) -> Any:
        return load_arrays(self._path, "latents", "pictures")

    def _key(self) -> str:
        """What decides the teacher's pictures."""
        facts = {
            "teacher": [self.teacher.network_identity(), self.teacher.fingerprint(self.subject.resolution)],
            "prompts": list(self.subject.prompts),
            "seeds": [self.subject.seed, self.subject.num_seeds],
            "steps": self.subject.reference_steps,
            "guidance": self.validation.guidance,
            "dtype": str(self.teacher.dtype),
            "device": self.teacher.device.type,
            "torch": torch.__version__,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
