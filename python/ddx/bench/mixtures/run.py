"""Distil a mixture with one of the methods, through the real trainer, and measure the student."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ddx.bench.mixtures.gate import Gate, Modes, gate
from ddx.bench.mixtures.optimum import score_optimum
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.config import Settings, build_many
from ddx.methods.base import Batch, Method
from ddx.methods.parts.flow_view import FlowView
from ddx.methods.parts.random_numbers import RandomNumbers, mix
from ddx.methods.parts.score_distillation import ScoreDistillation
from ddx.methods.registry import load_method, method_spec
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.trainer import Trainer

NUM_SAMPLES = 10_000
SETTINGS: dict[str, Any] = {
    "train_steps": 1000,
    "batch_size": 256,
    "micro_batch_size": None,
    "learning_rate": 1e-3,
    "lr_schedule": "cosine",
    "warmup_steps": 20,
    "ema_half_life": 5000.0,
    "gradient_checkpointing": False,
    "device": "cpu",
}


@dataclass(frozen=True)
class Student:
    """What a run left: the method with its trainer, seconds of training, and the losses on the way."""

    method: Method
    trainer: Trainer
    seconds: float
    history: tuple[dict[str, float | None], ...]

    def draw(self, num_steps: int, *, num_samples: int = NUM_SAMPLES, seed: int = 11) -> Tensor:
        """Return points `[N, D]` that the averaged student draws in `num_steps`."""
        teacher = self.teacher
        generator = torch.Generator().manual_seed(seed)
        shape = (num_samples, *teacher.latent_shape())
        noises = [torch.randn(shape, generator=generator) for _ in range(num_steps)]
        condition = teacher.condition(asked_classes(teacher, num_samples))
        with self.trainer.exported_student() as network:
            return self.method.draw(network, noises, condition).flatten(1)

    def gate(self, num_steps: int) -> Gate:
        """Return the gate's measures of `num_steps` steps."""
        return gate(self.draw(num_steps), self.wanted_modes)

    @cached_property
    def wanted_modes(self) -> Modes:
        """What it should draw: with guidance what the ODE or the method's own objective ends in."""
        teacher, config = self.teacher, replace(self.trainer.config, batch_size=4 * SETTINGS["batch_size"])
        if teacher.default_guidance == 1.0:
            return Modes.of(teacher.mixture)
        if isinstance(self.method, ScoreDistillation):
            return score_optimum(self.method, partial(make_batch, teacher, config), teacher.mixture)
        return ode_modes(teacher)

    @property
    def teacher(self) -> MixtureTeacher:
        """The teacher of the method."""
        assert isinstance(self.method.teacher, MixtureTeacher)
        return self.method.teacher


def asked_classes(teacher: MixtureTeacher, num_samples: int) -> Tensor:
    """Return the class that each sample is of, int64 `[N]`: each as often, or without guidance the class of all."""
    num_classes = teacher.mixture.num_classes
    if teacher.default_guidance == 1.0:
        return torch.full((num_samples,), num_classes)
    return torch.arange(num_samples) % num_classes


def ode_modes(teacher: MixtureTeacher, *, num_samples: int = 4 * NUM_SAMPLES, seed: int = 5) -> Modes:
    """Return the modes that the teacher's guided ODE ends in."""
    view, condition = FlowView(teacher), teacher.condition(asked_classes(teacher, num_samples))
    noise = torch.randn(num_samples, *teacher.latent_shape(), generator=torch.Generator().manual_seed(seed))

    def slope(x: Tensor, t: Tensor) -> Tensor:
        null = teacher.null_condition()
        return view.guided(teacher.network(), x, t, condition, null, teacher.default_guidance)

    end = view.ode_end(slope, view.start(noise, view.t_max), 100)
    return Modes.measured(end.flatten(1), teacher.mixture)


def distil(name: str, teacher: MixtureTeacher, **settings: Any) -> Student:
    """Distil `teacher` with the method `name`. Settings are those of `ddx distill`, the trainer's and the method's."""
    method, config = method_of(name, teacher, **settings)
    torch.manual_seed(config.seed)
    trainer = Trainer(method, config, Ranks(), torch.float32)
    began, history = time.perf_counter(), []
    for step in range(config.train_steps):
        trainer.step(step, [make_batch(teacher, config, step)])
        if (step + 1) % 50 == 0:
            history.append(trainer.meter.read(lambda value: value))
    return Student(method, trainer, time.perf_counter() - began, tuple(history))


def method_of(name: str, teacher: MixtureTeacher, **settings: Any) -> tuple[Method, DistillConfig]:
    """Return the method, and the settings of its trainer."""
    spec = method_spec(name)
    layers = [Settings(spec.method.defaults, "the method"), Settings({**SETTINGS, **settings}, "the bench")]
    config, method_config, *added = build_many((DistillConfig, *spec.configs), *layers)
    return load_method(name, method_config, teacher, *added), config


def make_batch(teacher: MixtureTeacher, config: DistillConfig, step: int) -> Batch:
    """Return the rows of a step: data of the whole mixture with the condition of all modes, or of their own class."""
    generator = torch.Generator().manual_seed(mix(config.seed, step, 1))
    classes = asked_classes(teacher, config.batch_size)
    x0 = teacher.mixture.draw(classes, generator)[:, :, None, None]
    return Batch(
        x0=x0,
        condition=teacher.condition(classes),
        null=teacher.null_condition(),
        random=FastRandomNumbers(mix(config.seed, step, 2), config.batch_size),
        step=step,
        progress=step / config.train_steps,
        neighbour=x0.roll(1, 0),
    )


class FastRandomNumbers(RandomNumbers):
    """One generator for all rows: a mixture has hundreds of them a step, and needs none to be its own."""

    def __init__(self, seed: int, num_rows: int) -> None:
        super().__init__(seed, 0, ())
        self._num_rows, self._generator = num_rows, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._num_rows

    def normal(self, *shape: int) -> Tensor:
        """See :meth:`RandomNumbers.normal`."""
        return torch.randn(self._num_rows, *shape, generator=self._generator)

    def _uniform(self) -> Tensor:
        return torch.rand(self._num_rows, generator=self._generator, dtype=torch.float64)
