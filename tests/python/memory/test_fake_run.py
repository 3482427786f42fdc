"""A step on tensors without data takes what the same step takes in memory, as torch's allocator counts it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ddx.memory.fake_run import footprint
from ddx.methods.registry import load_method, method_spec
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.trainer import Trainer
from distilling import make_batch
from pipelines import make_sana, make_stable_diffusion

CPU_BLOCK = 64  # what the processor's allocator rounds to
ROWS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wide enough for the networks to outweigh what a step holds beside them."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sana": make_sana(root / "sana", layers=2, width=160),
        "sd": make_stable_diffusion(root / "sd", "epsilon"),
    }


def measured_peak(folder: Path, config: DistillConfig) -> int:
    """The largest sum of bytes that torch's allocator has handed out, in two whole steps and what comes before."""
    method_config = method_spec(config.method).config()
    last = config.train_steps - 1
    batch = dataclasses.replace(make_batch(load_teacher(folder)), step=last)  # by a teacher whose text encoder goes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        method = load_method(config.method, method_config, load_teacher(folder))
        trainer = Trainer(method, config, Ranks(), torch.float32)
        for _ in range(2):
            trainer.step(last, [batch])
    now = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lcm": ("sana", "lcm", {}),
    "lcm, checkpointed": ("sana", "lcm", {"gradient_checkpointing": True}),
    "lcm, low rank": ("sana", "lcm", {"lora_rank": 8}),
    "sid": ("sana", "sid", {}),
    "sid, more averages": ("sana", "sid", {"ema_more": ("power:6.94", "decay:0.99")}),
    "dmd2": ("sana", "dmd2", {}),
    "scm": ("sana", "scm", {}),
    "shortcut, no average": ("sana", "shortcut", {"ema_half_life": 0.0}),
    "lcm of a UNet": ("sd", "lcm", {}),
    "dmd2 of a UNet, checkpointed": ("sd", "dmd2", {"gradient_checkpointing": True}),
}


QUICK = ("lcm, checkpointed", "lcm, low rank", "scm", "lcm of a UNet")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_peak_is_that_of_a_real_step(folders: dict[str, Path], case: str) -> None:
    kind, name, settings = CASES[case]
    values = {"batch_size": ROWS, "micro_batch_size": ROWS, "gradient_checkpointing": False, "train_steps": 10}
    defaults = method_spec(name).method.defaults
    config = DistillConfig(method=name, **{**defaults, **values, **settings, "optimizer": "adamw"})
    tokens = make_batch(load_teacher(folders[kind])).condition.tokens.shape[1]
    counted = footprint(
        config,
        method_spec(name).config(),
        None,
        load_teacher(folders[kind]),
        dtype=torch.float32,
        rows=ROWS,
        tokens=tokens,
        fused=False,
        block=CPU_BLOCK,
    )
    real = measured_peak(folders[kind], config)
    assert counted.peak.num_bytes == pytest.approx(real, rel=0.05)
