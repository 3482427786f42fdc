"""One method all the way on the exact ground; benchmarks/mixtures.py takes all of them."""

from __future__ import annotations

import dataclasses

import torch

from ddx.bench.mixtures.grounds import GROUNDS
from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.recipes import RECIPES
from ddx.bench.mixtures.run import distil
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.config import Settings, build_many
from ddx.methods.registry import METHODS
from ddx.training.config import DistillConfig


def test_every_method_has_a_recipe_of_its_settings() -> None:
    assert RECIPES.keys() == METHODS.keys()
    for name, recipe in RECIPES.items():
        spec = METHODS[name]
        for ground in GROUNDS:
            settings = {**recipe.settings, **recipe.on.get(ground, {})}
            build_many((DistillConfig, *spec.configs), Settings(settings, f"the recipe of {name} on {ground}"))
        assert {*recipe.passes, *recipe.on} <= set(GROUNDS) and all(recipe.passes.values())


def test_a_student_comes_near_the_gate_in_a_fifth_of_its_steps_and_an_untrained_one_does_not() -> None:
    torch.set_num_threads(1)
    settings = RECIPES["ect"].settings
    teacher = MixtureTeacher(circle()).fit(500)
    student = distil("ect", teacher, **{**settings, "train_steps": 500})
    untrained = distil("ect", teacher, **{**settings, "train_steps": 1})
    found, before = student.gate(1), untrained.gate(1)
    assert max(found.off_mode, found.worst_std, found.worst_share) < 0.25, dataclasses.asdict(found)
    assert before.off_mode > 0.5  # one step of the teacher itself: the mean of all modes
