"""The settings of `ddx distill` for all methods. The defaults suit SANA-600M at 512 px on one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.config import option
from ddx.errors import UsageError
from ddx.training.trackers.names import TRACKERS

# Settings that may change when a run continues: they change neither the weights nor their meaning.
RESUMABLE_CHANGES = frozenset(
    (
        *("out", "data", "device", "memory", "offload", "micro_batch_size", "prefetch"),
        *("gradient_checkpointing", "checkpointed_share", "compile", "cuda_graphs", "shard"),
        *("checkpoint_every", "async_checkpoints", "keep_checkpoints", "log_every", "max_lost_steps"),
        *("sample_every", "sample_prompts", "sample_steps", "reference_steps"),
        *("watch", "watch_every", "watch_cost", "watch_prompts", "watch_seeds", "look_decoder"),
        *("keep_best", "patience", "stop_on_alarm", "track"),
        *("lr_scaling", "warmup_images"),  # what follows from them is compared itself
    )
)
# What may differ if the command names it and the folder: it goes into the record's history.
EXPLICIT_CHANGES = frozenset(("learning_rate", "train_steps"))

# Settings that older runs do not have, and what those did.
ADDED_SINCE: Mapping[str, Any] = {
    "student_times": [],
    "guidance_set": None,
    "score_weight": "distance",
    "average_dtype": "float32",
    **{"regression_weight": 0.0, "misaligned": False},  # of ladd; others had theirs
    **{"fake_time_low": None, "fake_time_high": None},
    "base_bits": None,
    "look_decoder": "whole",
    **{"reward": None, "reward_weight": 1.0, "reward_start": 0.0, "reward_share": 1.0},
    "sampler": "own",
    **{"null_from": "teacher", "fake_from": "teacher"},
    **{"near_span": None, "loss": "l2", "barron_c": 1e-3, "jump_weight": "none", "drawing": "path"},
}

OFFLOADS = ("moments", "averages", "activations", "frozen")
OPTIMIZERS = ("adamw", "radam", "adamw8bit", "came")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distil a teacher into a student that draws in one to four steps."""

    method: str = option("lcm", "distillation method; `ddx list methods` shows all", metavar="NAME")
    teacher: str = option(
        "sana-600m", "teacher: a name, a folder, a hub id or one .safetensors file", metavar="NAME|PATH"
    )
    data: Path | None = option(None, "store to train on (none: the newest store of this teacher)", metavar="STORE")
    out: Path | None = option(None, "folder of the student (none: a new one in the workspace)", metavar="PATH")
    preset: str = option("auto", "settings tuned for this teacher and method: auto, none, or a name", metavar="NAME")
    from_student: Path | None = option(
        None, "student to start from (none: start from the teacher's weights)", metavar="STUDENT"
    )
    fake_from: str = option(
        "teacher",
        "weights that a fake score begins with; teacher: the teacher's; last-stage: its last ones in the run that made "
        "from_student",
        choices=("teacher", "last-stage"),
    )
    resolution: int | None = option(None, "picture size in pixels (none: the teacher's own)", example=512)
    picture_sizes: str = option(
        "fixed",
        "what a teacher that takes sizes (SDXL) is told of a picture; fixed: its size in the store, as at sampling; "
        "real: the original's size and crop",
        choices=("fixed", "real"),
    )
    train_steps: int = option(4000, "optimiser steps of the student")
    batch_size: int = option(64, "pictures per step, over all devices")
    micro_batch_size: int | None = option(
        8, "pictures per forward pass; gradients are accumulated (none: the whole batch)"
    )
    learning_rate: float = option(2e-6, "peak learning rate of AdamW")
    lr_schedule: str = option("constant", "learning rate after the warm-up", choices=("constant", "cosine", "linear"))
    warmup_steps: int = option(200, "steps over which the learning rate rises from zero")
    warmup_images: int | None = option(
        None, "the same in images, for a warm-up that does not depend on the batch (none: warmup_steps)"
    )
    lr_scaling: str = option(
        "none",
        "how the recipe's learning rate follows --batch-size: linear, or with its square root, from the recipe's batch",
        choices=("none", "linear", "sqrt"),
    )
    adam_beta1: float = option(0.9, "decay of AdamW's mean of gradients")
    adam_beta2: float = option(0.999, "decay of AdamW's mean of squared gradients")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    optimizer: str = option("adamw", "optimiser of every network", choices=OPTIMIZERS)
    loss_balance: str = option(
        "none",
        "balance of a network's second loss: none: as weighted; norm: its gradient's norm is held at a ratio to the "
        "first loss's; project: the part of its gradient that opposes the first is removed",
        choices=("none", "norm", "project"),
    )
    balance_ratio: float = option(0.5, "ratio of the second gradient's norm to the first's, for loss_balance norm")
    lora_rank: int = option(0, "rank of low-rank matrices to train instead of whole networks; 0: train whole networks")
    base_bits: int | None = option(
        None,
        "bits of the frozen weights around low-rank matrices: 8, or 4 by bitsandbytes, as in QLoRA; the student is "
        "written around the full weights (none: as the run computes)",
        example=4,
    )
    lora_alpha: float | None = option(None, "scale of the low-rank product, divided by the rank (none: the rank)")
    clip_norm: float = option(1.0, "largest norm of the gradient; larger gradients are scaled down. 0: no limit")
    ema_half_life: float = option(10_000.0, "half-life in images of the exported average; 0: the last weights")
    ema_ramp_up: float | None = option(0.05, "limits the half-life to this share of the images seen (none: no limit)")
    ema_more: tuple[str, ...] = option(
        (), "further averages, written to averages/: decay:0.999, half-life:20000, power:6.94", metavar="KIND:X"
    )
    average_dtype: str = option(
        "float32",
        "dtype of the averages that are written; bf16 is rounded at random, so that it does not stand still",
        choices=("float32", "bf16"),
    )
    dtype: str = option(
        "auto",
        "dtype of the computation (auto: bf16 on a GPU); fp16, with scaled losses, for teachers trained in it",
        choices=("auto", "float32", "bf16", "fp16"),
    )
    export_dtype: str = option(
        "auto",
        "dtype of the saved student (auto: that of the computation)",
        choices=("auto", "float32", "bf16", "fp16"),
    )
    device: str = option("auto", "device to compute on (auto: a GPU if present)", metavar="DEVICE")
    memory: str | None = option(
        None,
        "memory of one device to fit the run to; chooses the micro-batch, checkpointing, 8-bit moments and low rank "
        "where needed, and says so (none: take what the settings take)",
        metavar="SIZE",
        example="24GB",
    )
    offload: tuple[str, ...] = option(
        (),
        "what lives in the host's memory and visits the device, with the same results: the moments of adamw; averages; "
        "the activations that checkpointed blocks begin with; frozen weights, the teacher's or a low-rank run's",
        choices=OFFLOADS,
    )
    shard: str = option(
        "auto",
        "how processes share a run's networks, moments and averages; full: each holds a share of every tensor; hybrid: "
        "machines hold the same shares; auto: hybrid or full where whole ones take more than half of a GPU's memory",
        choices=("auto", "none", "full", "hybrid"),
    )
    gradient_checkpointing: bool = option(True, "recompute activations in the backward pass to save memory")
    checkpointed_share: float = option(1.0, "share of the blocks that gradient_checkpointing computes again")
    compile: bool = option(False, "compile the blocks of the networks, by torch.compile")
    cuda_graphs: bool = option(
        False,
        "record the passes of a step as CUDA graphs, where it decides nothing on the host; --dry-run says whether",
    )
    prefetch: int = option(4, "batches to prepare ahead")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    track: tuple[str, ...] = option(
        (),
        "trackers that follow the run: numbers, grids and the settings; their libraries are in ddx[track]",
        choices=TRACKERS,
    )
    checkpoint_every: int = option(500, "steps between checkpoints; 0: only when interrupted and at the end")
    async_checkpoints: bool = option(
        True, "train on while a checkpoint is written, from a copy in the host's memory where half of that has room"
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep")
    sample_every: int = option(500, "steps between grids of samples; 0: no grids. Shorter runs draw none")
    sample_prompts: int = option(8, "validation prompts in a grid")
    sample_steps: tuple[int, ...] = option((1, 2, 4), "step counts of the student in a grid", metavar="N,N,…")
    reference_steps: int = option(
        20, "steps of the teacher's pictures in a grid; `ode_distance` is the distance to them"
    )
    watch: bool = option(
        True, "look at what the student draws while it trains: watch.jsonl, index.html, alarms (docs/watch.md)"
    )
    watch_every: int = option(50, "least number of steps between two looks. Shorter runs take none")
    watch_cost: float = option(0.03, "share of the training time that looks may take; they are fewer where dear")
    watch_prompts: int = option(8, "validation prompts that a look draws")
    watch_seeds: int = option(4, "pictures of each of these prompts")
    look_decoder: str = option(
        "whole",
        "where the decoder is while looks and grids use it; parts: its weights and large maps wait on the host "
        "(--memory chooses it where looks would take more than a step)",
        choices=("whole", "parts"),
    )
    keep_best: str = option(
        "none",
        "keep the export of the best look in best/, by: distance, of the pictures to the teacher's; ode_distance; "
        "overall, the checker's marks, where the prompts are scenes",
        choices=("none", "distance", "ode_distance", "overall"),
    )
    patience: int = option(0, "end the run after this many looks without a better one; 0: never")
    stop_on_alarm: bool = option(False, "end the run at the first alarm")
    max_lost_steps: int = option(20, "stop the run after this many consecutive steps without a finite gradient")
    seed: int = option(0, "seed of the order of the data, the noise and the times")

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(
                    f"{name} = {value} must be at least {least}", hint=f"--{name.replace('_', '-')} {least}"
                )
        for name in ("learning_rate", "adam_epsilon", "balance_ratio"):
            if not getattr(self, name) > 0.0:
                raise UsageError(
                    f"{name} = {getattr(self, name)} must be above 0", hint=f"leave {name} away for its default"
                )
        for name in self.ema_more:
            parse_average(name)
        if not self.watch_cost > 0.0:
            raise UsageError(
                f"watch_cost = {self.watch_cost} must be above 0",
                hint="--watch-cost 0.03, or --no-watch for no looks",
            )
        for name in ("keep_best", "patience", "stop_on_alarm"):
            if not self.watch and getattr(self, name) not in ("none", 0, False):
                raise UsageError(
                    f"{name} = {getattr(self, name)} needs looks, and watch is off", hint="leave --no-watch away"
                )
        if not 0.0 < self.checkpointed_share <= 1.0:
            raise UsageError(
                f"checkpointed_share = {self.checkpointed_share} must be above 0 and at most 1",
                hint="--checkpointed-share 0.5, or --gradient-checkpointing false for none",
            )
        if self.compile and "frozen" in self.offload:
            raise UsageError("offload = frozen does not go with compile", hint="leave one of them away")
        if "moments" in self.offload and self.optimizer != "adamw":
            raise UsageError(
                f"offload = moments is for adamw, and optimizer = {self.optimizer}", hint="leave one of them away"
            )
        if self.from_student is not None and self.lora_rank:
            raise UsageError(
                f"from_student = {self.from_student} gives whole weights, lora_rank = {self.lora_rank} trains "
                "differences from the teacher",
                hint="leave one of them away",
            )
        if self.base_bits is not None and self.base_bits not in (8, 4):
            raise UsageError(f"base_bits = {self.base_bits} must be 8 or 4", hint="--base-bits 8")
        if self.base_bits is not None and not self.lora_rank:
            raise UsageError(
                f"base_bits = {self.base_bits} is for the frozen weights of a low-rank run, and lora_rank = 0",
                hint="add --lora-rank 64, or leave --base-bits away",
            )
        if not self.sample_steps or min(self.sample_steps) < 1:
            raise UsageError(
                f"sample_steps = {self.sample_steps} must be whole numbers from 1", hint="--sample-steps 1,2,4"
            )


def parse_average(name: str) -> tuple[str, float]:
    """Return the kind and the number of an average such as `half-life:20000`. Raises UsageError for other text."""
    kind, _, number = name.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if kind not in ("decay", "half-life", "power") or value < 0.0 or (kind == "decay" and value >= 1.0):
        raise UsageError(
            f"{name!r} names no average", hint="for example --ema-more decay:0.999, half-life:20000 or power:6.94"
        )
    return kind, value


_LEAST = {
    "train_steps": 1,
    "batch_size": 1,
    "micro_batch_size": 1,
    "warmup_steps": 0,
    "warmup_images": 0,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "lora_rank": 0,
    "ema_half_life": 0.0,
    "prefetch": 1,
    "log_every": 1,
    "checkpoint_every": 0,
    "max_lost_steps": 1,
    "keep_checkpoints": 1,
    "sample_every": 0,
    "sample_prompts": 1,
    "reference_steps": 1,
    "watch_every": 1,
    "watch_prompts": 1,
    "watch_seeds": 2,
    "patience": 0,
}
