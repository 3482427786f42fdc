"""What a distillation takes of a device's memory, and how it is fitted to one: `--dry-run` and `--memory`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddx.errors import UsageError
from ddx.memory.amount import in_gib
from ddx.memory.draw_count import VAE, DrawCounter
from ddx.memory.fake_gpu import GPU
from ddx.memory.fake_run import Footprint, footprint
from ddx.memory.over_gpus import OverGpus, SharedLedger, gathered
from ddx.memory.repeats import Repeats
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.teachers.base import Teacher
from ddx.teachers.families.table import FAMILIES
from ddx.teachers.family_of import name_of, weights_are_here
from ddx.teachers.registry import TEACHERS, configs_of, load_teacher
from ddx.training.config import DistillConfig
from ddx.training.run import compute_dtype, teacher_dtype
from ddx.training.streamed import cannot_stream
from ddx.watch.validation import IN_PARTS

ALLOWANCE = 2**30
"""Bytes beside the tensors: the device's context, the workspaces of its libraries, fragments. An assumption, which no
measurement on a GPU has confirmed yet."""

RANK = 64  # of the low-rank students that a plan may choose: LCM-LoRA's (Luo et al. 2023)


@dataclass(frozen=True)
class Device:
    """What a run is planned for: an NVIDIA GPU, or the processor."""

    gpu: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Choice:
    """Settings that save memory, and what they cost."""

    settings: dict[str, Any]
    cost: str


CHECKPOINTING = Choice({"gradient_checkpointing": True}, "blocks are computed twice: about a third more time a step")
HALF = Choice(
    {"gradient_checkpointing": True, "checkpointed_share": 0.5},
    "every second block is computed twice: about a sixth more time a step",
)
ROUNDED = Choice({"average_dtype": "bf16"}, "averages are rounded at random; about the same time")
EIGHT_BITS = Choice({"optimizer": "adamw8bit"}, "moments in 8 bits, by bitsandbytes; about the same time")
MOMENTS = Choice(
    {"offload": ("moments",)}, "moments visit from the host: 16 bytes a trained weight cross the bus an update"
)
AVERAGES = Choice({"offload": ("averages",)}, "averages visit from the host: 8 bytes a weight cross the bus a step")
FROZEN = Choice({"offload": ("frozen",)}, "frozen weights visit from the host: all of them cross the bus a pass")
ACTIVATIONS = Choice(
    {"offload": ("activations",)}, "what blocks begin with waits on the host, and crosses the bus twice"
)
LOW_RANK = Choice({"lora_rank": RANK}, "low-rank matrices are trained, not whole networks; the student is still whole")

BASE_8 = Choice({"base_bits": 8}, "frozen weights in 8 bits, widened for each product")
BASE_4 = Choice(
    {"base_bits": 4}, "frozen weights in 4 bits, by bitsandbytes; the networks are a little off the teacher"
)

LADDER: tuple[tuple[Choice, ...], ...] = (
    (),
    (HALF,),
    (CHECKPOINTING,),
    (CHECKPOINTING, ROUNDED),
    (CHECKPOINTING, ROUNDED, EIGHT_BITS),
    (CHECKPOINTING, ROUNDED, MOMENTS),
    (CHECKPOINTING, MOMENTS, AVERAGES, FROZEN, ACTIVATIONS),
    (CHECKPOINTING, LOW_RANK),
    (CHECKPOINTING, LOW_RANK, MOMENTS),
    (CHECKPOINTING, LOW_RANK, MOMENTS, BASE_8),
    (CHECKPOINTING, LOW_RANK, MOMENTS, BASE_4),
    (CHECKPOINTING, LOW_RANK, MOMENTS, AVERAGES, FROZEN, ACTIVATIONS),
    (CHECKPOINTING, LOW_RANK, MOMENTS, AVERAGES, FROZEN, ACTIVATIONS, BASE_4),
)


def merged(config: DistillConfig, choices: Iterable[Choice]) -> dict[str, Any]:
    """Return the settings of some choices together; what is offloaded comes to what the run offloads already."""
    settings: dict[str, Any] = {}
    for choice in choices:
        for name, value in choice.settings.items():
            before = settings.get(name, config.offload) if name == "offload" else ()
            settings[name] = tuple(dict.fromkeys((*before, *value))) if name == "offload" else value
    return settings


@dataclass(frozen=True)
class Fit:
    """Settings with which a run fits, why, and what it takes."""

    config: DistillConfig
    reasons: dict[str, str]  # by setting
    footprint: Footprint


class Planner:
    """Counts steps of one run with settings that differ."""

    def __init__(
        self,
        config: DistillConfig,
        method_config: Any,
        discriminator: AddedDiscriminatorConfig | None,
        *,
        device: Device,
        tokens: int | None = None,
        world: int = 1,
    ) -> None:
        """tokens: the length of the captions (None: the longest that the teacher's family reads)."""
        self.config, self.method_config, self.discriminator = config, method_config, discriminator
        self.device, self.world = device, world
        self.repeats = Repeats()
        self._decoder: int | None = None
        self.tokens = tokens or _longest_text(self._teacher(config))

    def footprint(
        self, config: DistillConfig | None = None, *, limit: float = math.inf, looks: bool = True
    ) -> Footprint:
        """Return the peak with these settings (None: those of the run), or what is above `limit` without a step.

        looks: whether the run's looks and grids are counted too.
        """
        config = config or self.config
        return footprint(
            config,
            self.method_config,
            self.discriminator,
            self._teacher(config),
            dtype=self.device.dtype,
            rows=min(config.micro_batch_size or config.batch_size, math.ceil(config.batch_size / self.world)),
            tokens=self.tokens,
            fused=self.device.gpu,
            limit=limit,
            repeats=self.repeats,
            looks=looks,
            decoder=self._decoder_in_parts(config) if looks and config.look_decoder == "parts" else None,
        )

    def over_gpus(self, worlds: Sequence[int]) -> OverGpus:
        """Return a step of one row a GPU, for each number of GPUs with its states shared out over them."""
        config, made = dataclasses.replace(self.config, batch_size=1, micro_batch_size=1), list[SharedLedger]()

        def make_ledger(block: int) -> SharedLedger:
            made.append(SharedLedger(worlds, block=block))
            return made[-1]

        footprint(
            config,
            self.method_config,
            self.discriminator,
            self._teacher(config),
            dtype=self.device.dtype,
            rows=1,
            tokens=self.tokens,
            fused=self.device.gpu,
            repeats=self.repeats,
            make_ledger=make_ledger,
            looks=False,
        )
        ledger = made[-1]
        whole = gathered(ledger.weights)
        shared = zip(worlds, ledger.peak.shared, strict=True)
        peaks = {world: peak + (whole if world > 1 else 0) for world, peak in shared}
        return OverGpus(ledger.weights, peaks, dict(ledger.passes), dict(ledger.turns), dict(ledger.updates))

    def fit(self, num_bytes: int, said: Collection[str], note: Callable[[str], None]) -> Fit:
        """Return settings with which the run takes at most `num_bytes`; those that are `said` stay as they are.

        `note` is told what is tried. UsageError, with the least that would do, where nothing fits.
        """
        limit, config = num_bytes - ALLOWANCE, self.config
        for choices in self.ladder(said):
            settings = merged(self.config, choices)
            config = dataclasses.replace(self.config, **settings)
            shown = ", ".join(f"{name} {_text(value)}" for name, value in settings.items()) or "the recipe as it is"
            note(f"counting a step with {shown} …")
            found = self._most_rows(config, limit, said)
            if found.footprint.peak.num_bytes <= limit:
                found = self._with_looks(found, limit, said)
            config = found.config
            if found.footprint.num_bytes <= limit:
                reasons = {name: "; ".join(c.cost for c in choices if name in c.settings) for name in settings}
                return dataclasses.replace(found, reasons=reasons | found.reasons)
        if "micro_batch_size" not in said:
            config = dataclasses.replace(config, micro_batch_size=1)
        least = self.footprint(config).num_bytes
        raise UsageError(
            f"{self.config.method} of {self.config.teacher} does not fit {in_gib(num_bytes)}: the least is about "
            f"{in_gib(least + ALLOWANCE)}",
            hint=f"give --memory {math.ceil((least + ALLOWANCE) / 2**30)}GiB, a smaller --resolution, or a method with "
            "fewer networks (`ddx list methods`)",
        )

    def _with_looks(self, found: Fit, limit: float, said: Collection[str]) -> Fit:
        """Return a fit whose looks decode in parts, where they would take more than the device has."""
        is_open = "look_decoder" not in said and found.config.look_decoder != "parts"
        if found.footprint.num_bytes <= limit or not is_open:
            return found
        config = dataclasses.replace(found.config, look_decoder="parts")
        why = {"look_decoder": "looks and grids take longer: weights and large maps of the decoder wait on the host"}
        return Fit(config, {**found.reasons, **why}, self.footprint(config))

    def ladder(self, said: Collection[str]) -> Iterator[tuple[Choice, ...]]:
        """Yield the choices that change something and that the user has not decided, from cheap to dear."""
        before = None
        for choices in LADDER:
            left = tuple(choice for choice in choices if self._is_open(choice, said))
            if LOW_RANK in left and FROZEN in left and self._cannot_stream(RANK):
                left = tuple(choice for choice in left if choice is not FROZEN)
            if LOW_RANK not in left and not self.config.lora_rank:
                left = tuple(choice for choice in left if choice not in (BASE_8, BASE_4))
            if left != before:
                yield left
            before = left

    def _is_open(self, choice: Choice, said: Collection[str]) -> bool:
        now = self.config
        if any(name in said for name in choice.settings) or merged(now, [choice]).items() <= vars(now).items():
            return False
        if choice is HALF:
            return not now.gradient_checkpointing
        if choice is EIGHT_BITS:
            return self.device.gpu and now.optimizer == "adamw" and "moments" not in now.offload
        if choice is MOMENTS:
            return now.optimizer == "adamw"
        if choice in (ROUNDED, AVERAGES):
            return bool(now.ema_half_life or now.ema_more)
        if choice is FROZEN:
            return not self._cannot_stream(now.lora_rank)
        return not (choice is LOW_RANK and now.lora_rank)

    def _cannot_stream(self, rank: int) -> str | None:
        return cannot_stream(rank, self.method_config, self.world)

    def _most_rows(self, config: DistillConfig, limit: float, said: Collection[str]) -> Fit:
        """Return the largest micro-batch up to the run's own that fits, or the smallest where none does."""
        asked = min(config.micro_batch_size or config.batch_size, math.ceil(config.batch_size / self.world))
        whole = self.footprint(config, limit=limit)
        if whole.peak.num_bytes <= limit or asked == 1 or "micro_batch_size" in said:
            return Fit(config, {}, whole)
        one = self._with_rows(config, 1, limit)
        if one.footprint.peak.num_bytes > limit:
            return one
        spare, slope = limit - one.footprint.peak.num_bytes, whole.peak.num_bytes - one.footprint.peak.num_bytes
        rows = 1 + int(max(spare, 0.0) * (asked - 1) / max(slope, 1))
        rows = next((size for size in range(min(rows, asked - 1), 1, -1) if config.batch_size % size == 0), 1)
        for size in range(rows, 1, -1):  # a step is nearly linear in its rows: the first of them fits as a rule
            found = self._with_rows(config, size, limit)
            if found.footprint.peak.num_bytes <= limit:
                return found
        return one

    def _with_rows(self, config: DistillConfig, rows: int, limit: float) -> Fit:
        config = dataclasses.replace(config, micro_batch_size=rows)
        why = {"micro_batch_size": f"{rows} of {self.config.batch_size} rows at a time; gradients are accumulated"}
        return Fit(config, why, self.footprint(config, limit=limit))

    def _decoder_in_parts(self, config: DistillConfig) -> int:
        """Return the bytes that the decoder takes of the device, kept as looks keep it."""
        if self._decoder is None:
            counter = DrawCounter(self._teacher(config, GPU), guided=False, size=config.resolution)
            self._decoder = counter.count(VAE, IN_PARTS.parts[VAE], IN_PARTS.maps).peak
        return self._decoder

    def _teacher(self, config: DistillConfig, device: torch.device | str = "cpu") -> Teacher:
        """Return the teacher with nothing loaded, on the processor, in the dtype that it has on the device."""
        name, resolution = config.teacher, config.resolution
        dtype = teacher_dtype(config, self.device.dtype)
        known = name_of(name)
        if known in TEACHERS and not weights_are_here(name):
            return configs_of(known, device=device, dtype=dtype, resolution=resolution)
        source = Path(name) if name not in TEACHERS else name
        return load_teacher(source, device=device, dtype=dtype, resolution=resolution)


def planned_device(config: DistillConfig) -> Device:
    """Return what a run is planned for: its device, or a GPU where the user names the memory of one."""
    gpu = config.memory is not None or config.device.startswith("cuda")
    gpu = gpu or (config.device == "auto" and torch.cuda.is_available())
    return Device(gpu, compute_dtype(config.dtype, torch.device("cuda" if gpu else "cpu")))


def _text(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


def _longest_text(teacher: Teacher) -> int:
    return next(family.text_tokens for family in FAMILIES if family.name == teacher.family)
