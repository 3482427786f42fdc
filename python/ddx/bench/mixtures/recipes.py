"""How each method distils a mixture within about a minute on one core, and at which numbers of steps it must pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddx.bench.mixtures.teacher import PROCESSES


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """settings: of the trainer and the method, over those of the bench; steps: the numbers of sampling steps that the
    gate is held at; processes: what it is run on; trained: whether the teacher is the fitted network and not the
    formula, because the method looks at its features.
    """

    settings: Mapping[str, Any]
    steps: tuple[int, ...] = (1, 2, 4)
    processes: tuple[str, ...] = tuple(PROCESSES)
    trained: bool = False


RECIPES: dict[str, Recipe] = {
    # few intervals, each of which hands its error on; the squared distance, for Huber's keeps modes too wide
    "lcm": Recipe(
        settings={
            "train_steps": 2500,
            "learning_rate": 3e-3,
            "adam_beta2": 0.99,
            "solver_steps": 4,
            "solver_substeps": 5,
            "solver_order": 2,
            "target_decay": 0.0,
            "loss": "l2",
            "guidance_min": 1.0,
            "guidance_max": 1.0,
        },
        processes=("flow",),
    ),
    # flow maps: a thousand steps and no more, so averages forget soon and the small step is long
    "rcgm": Recipe(
        settings={
            "train_steps": 1500,
            "learning_rate": 3e-3,
            "optimizer": "adamw",
            "small_step": 0.03,
            "target_decay": 0.95,
            "same_time_share": 0.1,
        },
        processes=("flow", "vp-v"),
    ),
    "shortcut": Recipe(  # few doublings, each of which hands its error on; one step is 4 % short of the widths' limit
        settings={
            "train_steps": 1500,
            "learning_rate": 3e-3,
            "smallest_jumps": 32,
            "bootstrap_share": 0.5,
            "target_decay": 0.9,
        },
        steps=(2, 4),
        processes=("flow",),
    ),
    "imf": Recipe(  # times without a preference: its own are for latents; 1 step: 5.1 % short of the widths' limit
        settings={
            "train_steps": 1500,
            "learning_rate": 2e-3,
            "adam_beta2": 0.999,
            "weight_power": 0.5,
            "time_sampling": "uniform",
            "second_time": "below",
            "same_time_share": 0.25,
        },
        steps=(2, 4),
        processes=("flow",),
    ),
    "twinflow": Recipe(  # 1 and 2 steps: 3.6 % and 0.3 % short of the widths' limit after 64 s
        settings={
            "train_steps": 2000,
            "learning_rate": 3e-3,
            "optimizer": "adamw",
            "small_step": 0.05,
            "target_decay": 0.95,
            "same_time_share": 0.0,
            "full_share": 0.2,
            "near_share": 0.1,
            "fake_share": 0.2,
            "rectify_clip": 0.5,
            "rectify_weight": 0.1,
        },
        steps=(4,),
        processes=("flow",),
    ),
    "reflow": Recipe(  # half at pure noise, where one step is asked for; 1 and 2 steps: 3.9 % and 0.5 % short
        settings={"train_steps": 1000, "learning_rate": 3e-3, "solver_steps": 8, "noise_share": 0.5},
        steps=(4,),
        processes=("flow",),
    ),
    # Five stages: the pairs' differences stay above what the small network tells apart, and the teacher's velocity has
    # no noise. With 1 and 2 steps the widths stay 20 % off.
    "ect": Recipe(
        settings={
            "train_steps": 800,
            "learning_rate": 1e-3,
            "optimizer": "adamw",
            "velocity_from": "teacher",
            "num_stages": 5,
            "huber_c": 0.03,
        },
        steps=(4,),
        processes=("flow",),
    ),
    # One small network learns quickest where every interval is as likely, so the published preference for equal times
    # and for the cleaner half is left away. In a minute 1 step is 20 % off in a width, 2 steps 1.2 % off the modes.
    "meanflow": Recipe(
        settings={
            "train_steps": 900,
            "learning_rate": 3e-3,
            "adam_beta2": 0.999,
            "time_sampling": "uniform",
            "second_time": "below",
            "same_time_share": 0.25,
            "error_power": 0.5,
        },
        steps=(4,),
        processes=("flow",),
    ),
    # score distillation: a slow student and a fake score that keeps up, or modes lose their shares; averaged for long.
    # The formula has no features, so without a discriminator. Tuned at one seed, one step leaves 3 % between the modes
    "dmd2": Recipe(
        settings={
            "train_steps": 1200,
            "learning_rate": 4e-4,
            "fake_rate": 3.0,
            "fake_updates": 1,
            "adam_beta2": 0.99,
            "clip_norm": 1.0,
            "ema_half_life": 20_000.0,
            "num_steps": 2,
            "start_time": 0.714,
            "time_shift": 0.8,
            "gan_weight": 0.0,
        },
        steps=(2,),
        processes=("flow",),
    ),
}
