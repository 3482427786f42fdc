"""A step on tensors without data takes what the same step takes in memory, as torch's allocator counts it.

Blocks that are alike are counted once, as `--dry-run` counts them.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from allocator import measured_peak
from ddx.memory.fake_run import Footprint, footprint
from ddx.memory.plan import HALF, ROUNDED
from ddx.memory.repeats import Repeats
from ddx.methods.registry import load_method, method_spec
from ddx.teachers.registry import load_teacher
from ddx.training import host_memory
from ddx.training.config import OFFLOADS, DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.trainer import Trainer
from distilling import make_batch
from pipelines import make_sana, make_stable_diffusion
from tiny import lumina2

CPU_BLOCK = 64  # what the processor's allocator rounds to
ROWS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wide enough for the networks to outweigh what a step holds beside them."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sana": make_sana(root / "sana", layers=2, width=160),
        "sd": make_stable_diffusion(root / "sd", "epsilon"),
        "lumina2": lumina2.make(root / "lumina2"),
    }


def peak_of_steps(folder: Path, config: DistillConfig) -> int:
    """The largest sum of bytes that torch's allocator has handed out, in two whole steps and what comes before."""
    method_config = method_spec(config.method).config()
    last = config.train_steps - 1
    batch = dataclasses.replace(make_batch(load_teacher(folder)), step=last)  # by a teacher whose text encoder goes

    def two_steps() -> None:
        method = load_method(config.method, method_config, load_teacher(folder))
        trainer = Trainer(method, config, Ranks(), torch.float32)
        for _ in range(2):
            trainer.step(last, [batch])

    return measured_peak(two_steps)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lcm": ("sana", "lcm", {}),
    "lcm, checkpointed": ("sana", "lcm", {"gradient_checkpointing": True}),
    "lcm, low rank": ("sana", "lcm", {"lora_rank": 8}),
    "lcm, half checkpointed, averages in bfloat16": ("sana", "lcm", {**HALF.settings, **ROUNDED.settings}),
    "sid": ("sana", "sid", {}),
    "sid, more averages": ("sana", "sid", {"ema_more": ("power:6.94", "decay:0.99")}),
    "dmd2": ("sana", "dmd2", {}),
    "scm": ("sana", "scm", {}),
    "shortcut, no average": ("sana", "shortcut", {"ema_half_life": 0.0}),
    "lcm of a UNet": ("sd", "lcm", {}),
    "scm of a UNet": ("sd", "scm", {}),
    "meanflow of a UNet, checkpointed": ("sd", "meanflow", {"gradient_checkpointing": True}),
    "dmd2 of a UNet, checkpointed": ("sd", "dmd2", {"gradient_checkpointing": True}),
    "lcm of a network that reads the lengths of its texts": ("lumina2", "lcm", {}),
}


QUICK = (
    *("lcm, half checkpointed, averages in bfloat16", "lcm, low rank", "scm", "lcm of a UNet"),
    "lcm of a network that reads the lengths of its texts",
)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_peak_is_that_of_a_real_step(folders: dict[str, Path], case: str) -> None:
    kind, name, settings = CASES[case]
    config = config_of(name, settings)
    counted = count(folders[kind], config, Repeats())
    real = peak_of_steps(folders[kind], config)
    assert counted.peak.num_bytes == pytest.approx(real, rel=0.05)


def config_of(name: str, settings: dict[str, Any]) -> DistillConfig:
    values = {"batch_size": ROWS, "micro_batch_size": ROWS, "gradient_checkpointing": False, "train_steps": 10}
    defaults = method_spec(name).method.defaults
    return DistillConfig(method=name, **{**defaults, **values, **settings, "optimizer": "adamw"})


def count(folder: Path, config: DistillConfig, repeats: Repeats | None, **more: Any) -> Footprint:
    settings = {"dtype": torch.float32, "rows": ROWS, "fused": False, "block": CPU_BLOCK, **more}
    tokens = make_batch(load_teacher(folder)).condition.tokens.shape[1]
    method_config = method_spec(config.method).config()
    return footprint(config, method_config, None, load_teacher(folder), tokens=tokens, repeats=repeats, **settings)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_that_are_alike_are_counted_once(folders: dict[str, Path], checkpointing: bool) -> None:
    # in bfloat16, whose copies of weights autocast keeps, and with gradients that are added to others
    config = config_of("lcm", {"gradient_checkpointing": checkpointing, "batch_size": 2 * ROWS})
    known = Repeats()
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "fused": True}
    once = count(folders["sana"], config, known, **settings)
    tried = len(known.tolls)
    again = count(folders["sana"], config, known, **settings)
    assert len(known.tolls) == tried > 0 and again.peak.num_bytes == pytest.approx(once.peak.num_bytes, rel=0.005)
    in_full = count(folders["sana"], config, None, **settings)
    assert once.peak.num_bytes == pytest.approx(in_full.peak.num_bytes, rel=0.02)
    assert once.peak.during[0] == in_full.peak.during[0]


def test_what_lives_on_the_host_is_counted_apart(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "PART", 1000)  # so that little visits at a time
    config = config_of("lcm", {"gradient_checkpointing": True})
    known = Repeats()
    plain = count(folders["sana"], config, known)
    offloaded = count(folders["sana"], dataclasses.replace(config, offload=OFFLOADS), known)
    weights = 4 * plain.num_parameters
    assert plain.host_bytes == 0
    saved = plain.peak.num_bytes - offloaded.peak.num_bytes
    at_home = 2 * weights + weights + weights  # moments, the average, the teacher's blocks, in float32 here
    assert at_home < offloaded.host_bytes < 2.2 * at_home  # pinned memory is given out in powers of two
    assert 0.85 * at_home < saved < 1.05 * at_home


def test_counting_leaves_later_networks_their_initial_weights() -> None:
    # Both libraries put back, after each network that they load, the functions of nn.init that their import saw.
    script = """
from ddx.memory.no_values import no_values
with no_values(fused=False):
    from diffusers.models import modeling_utils
    from transformers import initialization
import torch
for module in (modeling_utils, initialization):
    for name, function in module.TORCH_INIT_FUNCTIONS.items():
        assert function is getattr(torch.nn.init, name) and function.__name__ == name, (module, name, function)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
