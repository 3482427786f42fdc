"""How methods distil a mixture within about a minute on one core, and at which numbers of steps they pass.

What was reached with which other settings is in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """settings: of the trainer and the method, over those of the bench; on: what is different on a ground; passes: the
    numbers of sampling steps in which the gate is passed, by ground; features: whether the method looks at the
    teacher's features.
    """

    settings: Mapping[str, Any]
    passes: Mapping[str, tuple[int, ...]]
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    features: bool = False


# What most of them share: Adam that forgets soon, at the rate that the small network bears.
FAST: dict[str, Any] = {"optimizer": "adamw", "adam_beta2": 0.99, "learning_rate": 3e-3}
# Their times and the fake score's weight are those of flow on all grounds.
SCORES: dict[str, Any] = {
    "time_sampling": "shifted",
    "denoising_weight": "none",
    "adam_beta1": 0.0,
    "adam_beta2": 0.99,
    "learning_rate": 4e-4,
    "fake_rate": 3.0,
    "clip_norm": 1.0,
    "ema_half_life": 20_000.0,
}
# The learned weight runs away on so small a network.
SCM: dict[str, Any] = {
    **FAST,
    "learning_rate": 2e-3,
    "clip_norm": 1.0,
    "learned_weight": False,
    "tangent_c": 1.0,
    "tangent_norm": "rms",
}
# From pure noise, with more of the noisy times, where modes are given their shares.
SID: dict[str, Any] = {**SCORES, "train_steps": 4000, "learning_rate": 2e-4, "start_time": 1.0, "time_shift": 1.5}
# Many points a step, and a discriminator ahead of the student, with a penalty on its slope.
GAN: dict[str, Any] = {
    **FAST,
    "adam_beta1": 0.0,
    "batch_size": 768,
    "learning_rate": 4e-4,
    "clip_norm": 1.0,
    "ema_half_life": 150_000.0,
    "num_steps": 1,
    "gan_loss": "relativistic",
    "r1_weight": 0.1,
    "discriminator_rate": 5.0,
}
ALL = (1, 2, 4)
# Off flow from below pure noise, as SiD is published: there what a network predicts says little of the picture.
BELOW_NOISE: dict[str, Any] = {"start_time": 0.7143}


def averaged(half_life: float) -> dict[str, Any]:
    """Return the settings of a student that is an average of so many points, those of its first steps among them."""
    return {"ema_half_life": half_life, "ema_ramp_up": None}


RECIPES: dict[str, Recipe] = {
    # few intervals, each of which hands its error on; the squared distance, for Huber's keeps modes too wide
    "lcm": Recipe(
        settings={
            **FAST,
            "train_steps": 2500,
            "solver_steps": 4,
            "solver_substeps": 5,
            "solver_order": 2,
            "target_decay": 0.0,
            "loss": "l2",
            "guidance_min": 1.0,
            "guidance_max": 1.0,
        },
        passes={"flow": ALL, "16-D": (4,), "guided": (1, 2), "vp-eps-sd": (1,), "vp-eps": (2, 4)},
    ),
    # four phases and four steps; few intervals in each, whose pairs differ enough to be told apart
    "pcm": Recipe(
        settings={**FAST, "train_steps": 2500, "solver_steps": 16, "loss": "l2"},
        passes={"flow": (4,), "16-D": (4,)},
    ),
    # in one and in two steps the widths stay 14 % off: twelve intervals, each of which hands its error on
    "cd": Recipe(
        settings={**FAST, "train_steps": 2000, "grid_steps": 12, "loss": "l2", "target_decay": 0.0},
        passes={"flow": (4,), "guided": (1,), "edm": (4,)},
    ),
    # five stages: the pairs' differences stay above what the small network tells apart
    "ect": Recipe(
        settings={**FAST, "train_steps": 2500, "velocity_from": "teacher", "num_stages": 5, "loss": "l2"},
        passes={"flow": ALL, "16-D": (4,), "guided": (2,), "edm": ALL, "vp-v": ALL, "vp-eps-sd": (2, 4)},
    ),
    # times and weights of ict; from data alone 3000 steps leave 11 % off the modes
    "ct": Recipe(
        settings={
            **FAST,
            "train_steps": 2000,
            "velocity_from": "teacher",
            "time_sampling": "log-normal",
            "time_mean": -0.407,
            "time_std": 2.0,
            "pair_weight": "level",
            "grid_steps_start": 4,
            "grid_steps": 16,
            "loss": "l2",
            "target_decay": 0.0,
        },
        passes={"flow": (4,), "edm": (4,), "vp-eps-sd": (4,)},
    ),
    # a short second stage; on flow one from t' = 0.5 passes too
    "tcm": Recipe(
        settings={
            **FAST,
            "train_steps": 2500,
            "velocity_from": "teacher",
            "num_stages": 5,
            "loss": "l2",
            "first_share": 0.8,
            "truncation_time": 0.3,
        },
        passes={"flow": ALL, "guided": (2,), "edm": (1, 4), "vp-v": (1,)},
    ),
    # two steps stay 13 % off in their widths
    "ict": Recipe(
        settings={
            **FAST,
            "train_steps": 2000,
            "velocity_from": "teacher",
            "grid_steps_start": 4,
            "grid_steps": 16,
            "loss": "l2",
        },
        passes={"flow": (1, 4), "edm": (4,), "vp-eps-sd": (4,)},
    ),
    # one step is 0.2 % short of the widths' limit
    "scm": Recipe(
        settings={**SCM, "train_steps": 1500},
        passes={"flow": (2, 4), "edm": (4,), "vp-v": (2, 4), "vp-eps": (4,)},
    ),
    # as scm, in equal steps: the published second time leaves widths 13 % off; one step: 19 to 28 % off
    "sana-sprint": Recipe(
        settings={**SCM, "train_steps": 1500, "tangent_warmup": 0.1, "student_times": (1.0, 0.5)},
        passes={"flow": (2, 4), "edm": (2, 4), "vp-v": (2, 4), "vp-eps-sd": (2,)},
        on={
            "edm": {"student_times": (1.0, 0.7155)},
            "vp-v": {"student_times": (1.0, 0.774)},
            "vp-eps": {"student_times": (1.0, 0.774)},
            "vp-eps-sd": {"student_times": (1.0, 0.6173)},
        },
        features=True,
    ),
    # every interval as likely, where the paper prefers equal times; one and two steps just miss
    "meanflow": Recipe(
        settings={
            **FAST,
            "train_steps": 1500,
            "time_sampling": "uniform",
            "second_time": "below",
            "same_time_share": 0.25,
            "error_power": 0.5,
        },
        passes={"flow": (4,), "guided": (4,)},
    ),
    # times as in meanflow; four steps are 1 % short of the widths' limit
    "imf": Recipe(
        settings={
            **FAST,
            "train_steps": 1500,
            "weight_power": 0.5,
            "time_sampling": "uniform",
            "second_time": "below",
            "same_time_share": 0.25,
        },
        passes={"flow": (1, 2), "guided": (4,), "edm": (4,)},
    ),
    "shortcut": Recipe(  # few doublings, each of which hands its error on
        settings={**FAST, "train_steps": 2500, "smallest_jumps": 32, "bootstrap_share": 0.5, "target_decay": 0.9},
        passes={"flow": ALL, "16-D": (4,), "guided": (2, 4), "edm": ALL, "vp-v": ALL, "vp-eps-sd": (1,)},
    ),
    # one step 12 % and four steps 15 % off in their widths
    "progressive": Recipe(
        settings={**FAST, "train_steps": 2000, "first_steps": 16},
        passes={"flow": (2,), "edm": (2,), "vp-v": (1,)},
    ),
    "reflow": Recipe(  # half of the rows at pure noise, where one step is asked for
        settings={**FAST, "train_steps": 1500, "solver_steps": 8, "noise_share": 0.5},
        passes={"flow": ALL, "16-D": (4,), "guided": ALL, "edm": ALL, "vp-v": ALL, "vp-eps-sd": ALL},
    ),
    # a small step of 0.03 is long, so a thousand steps teach it; four steps: shares 12 % off
    "rcgm": Recipe(
        settings={**FAST, "train_steps": 1500, "small_step": 0.03, "target_decay": 0.95, "same_time_share": 0.1},
        passes={"flow": (1, 2), "guided": (1,), "edm": ALL, "vp-v": (1, 4)},
    ),
    # fewer rows of fakes than the paper's quarter, and a weak rectification: with more, widths are further off
    "twinflow": Recipe(
        settings={
            **FAST,
            "train_steps": 2500,
            "learning_rate": 1e-3,
            "small_step": 0.03,
            "target_decay": 0.95,
            "rectify_weight": 0.05,
            "fake_share": 0.15,
            "near_share": 0.1,
        },
        passes={
            **{"flow": ALL, "16-D": (4,), "guided": (4,), "edm": (4,)},
            **{"vp-v": ALL, "vp-eps-sd": (2, 4), "vp-eps": (4,)},
        },
    ),
    # several steps: widths 11 to 13 % off
    "freeflow": Recipe(
        settings={**FAST, "train_steps": 2500, "learning_rate": 1e-3},
        passes={"flow": (1,), "guided": (2,), "edm": (1, 2), "vp-v": (1, 2)},
    ),
    "sid": Recipe(
        settings=SID,
        passes={"flow": (1,), "edm": (1,), "vp-v": (1,), "vp-eps-sd": (1,)},
        on=dict.fromkeys(("vp-v", "vp-eps-sd", "vp-eps", "edm"), BELOW_NOISE),
    ),
    # without guidance it is SiD
    "sid-lsg": Recipe(
        settings={**SID, "kappa1": 1.0, "kappa2": 1.0, "kappa4": 1.0},
        passes={"flow": (1,)},
        on={
            **dict.fromkeys(("vp-v", "vp-eps-sd", "vp-eps", "edm"), BELOW_NOISE),
            "guided": {"kappa1": None, "kappa2": None, "kappa4": None},
        },
    ),
    # SiD's times and start, in one step; the discriminator follows the fake score
    "sida": Recipe(
        settings={**SID, "num_steps": 1},
        passes={"flow": (1,), "vp-v": (1,), "edm": (1,), "vp-eps-sd": (1,)},
        on={
            **dict.fromkeys(("vp-v", "vp-eps"), BELOW_NOISE),
            **{ground: {**BELOW_NOISE, **averaged(180_000.0)} for ground in ("vp-eps-sd", "edm")},
        },
    ),
    # score distillation: a slow student and a fake score that keeps up, or modes lose their shares; averaged for long
    "diff-instruct": Recipe(
        settings={**SCORES, "train_steps": 2000},
        passes={"flow": (1,), "vp-v": (1,)},
        on=dict.fromkeys(("vp-v", "vp-eps-sd", "vp-eps", "edm"), BELOW_NOISE),
    ),
    # one noise level, two thirds of the default one: the more noise, the less of the widths is seen through it
    "dde": Recipe(
        settings={
            **SCORES,
            "train_steps": 4000,
            "learning_rate": 2e-4,
            "fake_rate": 5.0,
            "time_sampling": "set",
            "time_set": (0.2,),
        },
        passes={"flow": (1,), "edm": (1,), "vp-v": (1,), "vp-eps-sd": (1,), "vp-eps": (1,)},
        on=dict.fromkeys(("vp-eps-sd", "vp-eps"), BELOW_NOISE),
    ),
    "dmd": Recipe(
        settings={**SCORES, "train_steps": 1500},
        passes={"flow": (1,), "guided": (1,), "edm": (1,), "vp-v": (1,)},
    ),
    # a long average: half-lives of 20,000 and 400,000 points leave widths 10 and 26 % off in two steps; the square, for
    # Huber's loss leaves them 17 % off
    "tdm": Recipe(
        settings={
            **SCORES,
            "train_steps": 3000,
            "learning_rate": 2e-4,
            "fake_rate": 5.0,
            "num_steps": 2,
            "loss": "l2",
            "renoise": "noise",
            "fake_knows_step": True,
            **averaged(150_000.0),
        },
        passes={"flow": (2,)},
    ),
    "dmd2": Recipe(
        settings={
            **SCORES,
            "adam_beta1": 0.9,
            "train_steps": 1200,
            "fake_updates": 1,
            "num_steps": 2,
            "start_time": 0.714,
            "time_shift": 0.8,
            "gan_weight": 1e-3,
            "head_condition": True,
        },
        passes={"flow": (2,), "guided": (2,), "edm": (1,), "vp-v": (1,), "vp-eps-sd": (2,)},
        on={"edm": averaged(60_000.0), "vp-v": averaged(60_000.0), "vp-eps-sd": averaged(150_000.0)},
        features=True,
    ),
    # without guidance one of its terms is left: DMD's
    "decoupled-dmd": Recipe(
        settings={
            **SCORES,
            "train_steps": 1500,
            "num_steps": 1,
            "fake_updates": 1,
            "time_low": 0.02,
            "time_high": 0.98,
        },
        passes={"flow": (1,), "edm": (1,), "vp-v": (1,)},
    ),
    # a shorter average: with three times the half-life widths are 14 % off, and so they are where the discriminator
    # looked through more noise, in fewer steps
    "ladd": Recipe(
        settings={**GAN, "train_steps": 3000, "time_mean": -4.5, **averaged(50_000.0)},
        passes={"flow": (1,), "16-D": (1,)},
        features=True,
    ),
    # next to nothing of the regression, whose own optimum is narrower than the modes
    "add": Recipe(
        settings={**GAN, "train_steps": 2000, "regression_weight": 0.02},
        passes={"flow": (1,)},
        features=True,
    ),
}
