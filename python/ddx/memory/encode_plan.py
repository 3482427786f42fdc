"""How a precompute is fitted to a device: `ddx precompute --memory`, and what its dry run tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch

from ddx.data.config import PrecomputeConfig
from ddx.data.precompute.encode import CAPTIONS_AT_ONCE
from ddx.data.precompute.keeping import EncodeKeeping
from ddx.errors import UsageError
from ddx.memory.amount import in_gb
from ddx.memory.draw_count import VAE
from ddx.memory.draw_plan import WORKSPACE
from ddx.memory.encode_count import EncodeCounter, TextCount
from ddx.memory.fake_gpu import GPU
from ddx.offload.keeping import BLOCKS, DEVICE, LEAVES, TOGETHER, TURNS, Keeping
from ddx.offload.maps import KEPT
from ddx.teachers.family_of import name_of, weights_are_here
from ddx.teachers.parts.batches import ROWS
from ddx.teachers.registry import TEACHERS, configs_of, load_teacher

TEXTS = "captions"
_CAPTIONS = (CAPTIONS_AT_ONCE, 128, 64, 32, 16, ROWS)
_SHARES = (0.5, 0.25, 0.12)  # of the limit, for one operation of the autoencoder


@dataclass(frozen=True)
class StagePlan:
    """How the networks of a stage are kept, what they take with how much at once, and what that costs."""

    parts: dict[str, str]
    peak: int
    at_once: int  # captions, or pictures
    cost: str
    maps: int | None = None


@dataclass(frozen=True)
class EncodePlan:
    """How the networks are kept while a store is made: a stage for captions, and one for pictures."""

    texts: StagePlan
    pictures: StagePlan
    peak: int  # bytes, without WORKSPACE
    during: str

    @property
    def keeping(self) -> EncodeKeeping:
        """What `ddx.data.precompute` does of it."""
        parts = {**self.texts.parts, **self.pictures.parts}
        networks = Keeping(parts=parts, maps=self.pictures.maps, coding="encode")
        return EncodeKeeping(networks=networks, captions_at_once=self.texts.at_once)


def counter_of(config: PrecomputeConfig) -> EncodeCounter:
    """Return what counts a precompute on a GPU, from the teacher's configs alone."""
    name = config.teacher
    dtype = None if config.dtype == "auto" else config.dtype
    known = name_of(name)
    if known in TEACHERS and not weights_are_here(name):
        teacher = configs_of(known, device=GPU, dtype=dtype, resolution=config.resolution)
    else:
        teacher = load_teacher(name, device=GPU, dtype=dtype, resolution=config.resolution)
    return EncodeCounter(teacher, config)


def counts_here(config: PrecomputeConfig) -> bool:
    """Return whether a dry run tells of a GPU: where one is to be used, or the user names the memory of one."""
    if config.memory is not None or config.device.startswith("cuda"):
        return True
    return config.device == "auto" and torch.cuda.is_available()


def whole(counter: EncodeCounter, rows: int) -> EncodePlan:
    """Return the plan that keeps everything on the device, as a run without `--memory` does."""
    texts = counter.texts(dict.fromkeys(counter.encoders, TOGETHER))
    pictures = counter.pictures(TURNS, rows)
    weights = texts.weights + pictures.weights
    beside_texts = texts.with_captions(CAPTIONS_AT_ONCE) - texts.weights
    beside_pictures = pictures.peak - pictures.moved + texts.left
    peak = weights + max(beside_texts, beside_pictures)
    during = TEXTS if beside_texts > beside_pictures else counter.painter
    return EncodePlan(
        StagePlan(dict.fromkeys(counter.encoders, DEVICE), weights + beside_texts, CAPTIONS_AT_ONCE, ""),
        StagePlan({counter.painter: DEVICE}, weights + beside_pictures, rows, ""),
        peak,
        during,
    )


def fit(
    counter: EncodeCounter, num_bytes: int, rows: int, said: Collection[str], note: Callable[[str], None]
) -> EncodePlan:
    """Return the cheapest plan whose peak is within `num_bytes`, with at most `rows` pictures in a batch.

    The two stages take turns, so each takes the first way of its own ladder that fits. `said`: the settings that the
    user has decided. UsageError, with the least that would do, where none fits. `note` is told what is counted.
    """
    limit = num_bytes - WORKSPACE
    note("counting the text encoders …")
    texts, left = _first_texts(counter, limit)
    note(f"counting the {counter.painter} …")
    pictures = _first_pictures(counter, limit, left, [rows] if "batch_size" in said else list(_halves(rows)))
    stages = {TEXTS: texts, counter.painter: pictures}
    least = max(stages, key=lambda name: stages[name].peak)
    peak = stages[least].peak
    if peak > limit:
        needed = math.ceil((peak + WORKSPACE) / 10**6)
        raise UsageError(
            f"a precompute does not fit {in_gb(num_bytes)}: the least is about {needed} MB, for the {least}",
            hint=f"give --memory {needed}MB, or a smaller --resolution",
        )
    if set(texts.parts.values()) == {TOGETHER} and set(pictures.parts.values()) == {TURNS}:
        resident = whole(counter, pictures.at_once)
        if resident.peak <= limit and pictures.at_once == rows:
            return resident
    return EncodePlan(texts, pictures, peak, least)


def _first_texts(counter: EncodeCounter, limit: int) -> tuple[StagePlan, int]:
    """Return the text encoders' cheapest way within `limit`, or the last one; and what it leaves on the device."""
    ladder = list(_text_ladder(counter))
    for how in ladder:
        is_last = how == ladder[-1]
        count = counter.texts(how, limit=math.inf if is_last else limit)
        if count.peak <= limit or is_last:
            break
    fits = (number for number in _CAPTIONS if count.with_captions(number) <= limit)
    number = next(fits, ROWS)
    return StagePlan(how, count.with_captions(number), number, _text_cost(how, count)), count.left


def _text_ladder(counter: EncodeCounter) -> Iterator[dict[str, str]]:
    """Yield the ways to keep the text encoders, from cheap to dear: the largest goes to the host first."""
    parts = counter.encoders
    yield dict.fromkeys(parts, TOGETHER)
    how = dict.fromkeys(parts, TURNS)
    if len(parts) > 1:
        yield dict(how)
    sizes = counter.weights_of_encoders() if len(parts) > 1 else dict.fromkeys(parts, 0)
    for part in sorted(parts, key=lambda part: -sizes[part]):
        how[part] = LEAVES
        yield dict(how)


def _first_pictures(counter: EncodeCounter, limit: int, left: int, batches: list[int]) -> StagePlan:
    """Return the cheapest way for the pictures within `limit`, or the last one; `left` is there beside it."""
    ladder: list[tuple[str, int, int | None]] = [
        (how, rows, None)
        for how in ((TURNS, LEAVES) if counter.painter == VAE else (TURNS, BLOCKS, LEAVES))
        for rows in batches
    ]
    if counter.painter == VAE:
        shares = (max(int(share * limit), 2**20) for share in _SHARES)
        ladder += [(LEAVES, batches[-1], share) for share in shares]
    for step in ladder:
        how, rows, maps = step
        is_last = step == ladder[-1]
        count = counter.pictures(how, rows, maps=maps, limit=math.inf if is_last else limit - left)
        if count.peak + left <= limit or is_last:
            break
    moved = f"{in_gb(count.moved)} cross the bus"
    if how == TURNS:
        cost = f"{moved} a part, when its turn comes"
    else:
        cost = f"{moved} a batch" if counter.painter == VAE else f"{moved} an evaluation"
    if maps is not None:
        cost += f"; maps above {in_gb(maps / KEPT)} wait on the host and cross it for each operation"
    return StagePlan({counter.painter: how}, count.peak + left, rows, cost, maps)


def _text_cost(how: dict[str, str], count: TextCount) -> str:
    if set(how.values()) == {TOGETHER}:
        return f"{in_gb(count.weights)} cross the bus a part, when their turn comes"
    tables = count.tables if LEAVES in how.values() else 0
    cost = f"{in_gb(count.weights - tables)} cross the bus for each {ROWS} captions"
    return f"{cost}; tables of {in_gb(tables)} stay on the host" if tables else cost


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        yield number
        number //= 2
    yield 1
