"""How a drawing is fitted to a device: `ddx sample --memory`, and what its dry run tells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ddx.errors import UsageError
from ddx.memory.amount import in_gb
from ddx.memory.draw_count import VAE, Count, DrawCounter
from ddx.memory.fake_gpu import GPU
from ddx.offload.keeping import BLOCKS, DEVICE, LEAVES, TURNS, Keeping
from ddx.offload.maps import KEPT
from ddx.sampling.config import SampleConfig
from ddx.sampling.student import StudentFolder
from ddx.sampling.teacher_folder import TeacherFolder
from ddx.teachers.families.table import no_adapter, open_teacher
from ddx.teachers.hub import local_source

WORKSPACE = 32 * 2**20
"""Bytes beside the tensors that torch's allocator gives to cuBLAS. The device's own context is not in `--memory`: no
allocator sees it."""

_SHARES = (0.6, 0.4, 0.25, 0.15, 0.08)  # of the limit, for one operation of a decoder


@dataclass(frozen=True)
class PartPlan:
    """How one component is kept, what it takes, and what that costs."""

    how: str
    count: Count
    maps: int | None
    cost: str


@dataclass(frozen=True)
class DrawPlan:
    """How a pipeline is kept while it draws."""

    parts: dict[str, PartPlan]
    fp8: bool
    peak: int  # bytes, without WORKSPACE
    during: str  # the component that holds it
    limit: int | None = None  # what was asked for

    @property
    def keeping(self) -> Keeping:
        """What `ddx.offload` does of it."""
        parts = {name: part.how for name, part in self.parts.items()}
        return Keeping(parts=parts, maps=self.parts[VAE].maps, fp8=self.fp8, limit=self.limit)


def counter_of(files: StudentFolder, *, guided: bool, config: SampleConfig) -> DrawCounter:
    """Return what counts the pipeline of these files, in the dtype that it has on a GPU. UsageError without an adapter.

    guided: whether it draws with two halves of guidance.
    """
    family = files.family
    if family is None:
        raise no_adapter(files.name, files.pipeline_class)
    if isinstance(files, TeacherFolder):
        source, dtype = files.teacher.source_info, "bfloat16" if config.dtype == "auto" else files.component_dtypes()
    else:
        source, dtype = local_source(files.folder), files.component_dtypes(config.dtype)
    if not isinstance(dtype, str):
        dtype = dtype.get(files.denoiser_part, dtype["default"])
    size = config.pixels or files.resolution
    teacher = open_teacher(source, device=GPU, dtype=dtype, default_resolution=files.resolution)
    return DrawCounter(teacher, guided=guided, size=size, rows=config.batch_size or 1)


def whole(counter: DrawCounter, *, fp8: bool = False) -> DrawPlan:
    """Return the plan that keeps everything on the device."""
    counts = {part: _counted(counter, part, TURNS, None, fp8) for part in counter.parts}
    weights = {part: _stored(counter, part, count, fp8) for part, count in counts.items()}
    beside = {part: count.peak - weights[part] for part, count in counts.items()}
    during = max(beside, key=lambda part: beside[part])
    parts = {part: PartPlan(DEVICE, count, None, "") for part, count in counts.items()}
    return DrawPlan(parts, fp8, sum(weights.values()) + beside[during], during)


def fit(counter: DrawCounter, num_bytes: int, note: Callable[[str], None], *, fp8: bool = False) -> DrawPlan:
    """Return the cheapest plan whose peak is within `num_bytes`. UsageError, with the least that would do, where none.

    Each component takes the first way of its own ladder that fits: they are on the device one after another. `note` is
    told what is counted.
    """
    limit = num_bytes - WORKSPACE
    parts: dict[str, PartPlan] = {}
    for part in counter.parts:
        note(f"counting {part} …")
        parts[part] = first_that_fits(counter, part, limit, fp8)
    least = max(parts, key=lambda part: parts[part].count.peak)
    peak = parts[least].count.peak
    if peak > limit:
        needed = math.ceil((peak + WORKSPACE) / 10**6)
        raise UsageError(
            f"a drawing does not fit {in_gb(num_bytes)}: the least is about {needed} MB, for the {least}",
            hint=f"give --memory {needed}MB, or a smaller --resolution",
        )
    if all(part.how == TURNS for part in parts.values()):
        resident = whole(counter, fp8=fp8)
        if resident.peak <= limit:
            return dataclasses.replace(resident, limit=num_bytes)
    return DrawPlan(parts, fp8, peak, least, num_bytes)


def first_that_fits(counter: DrawCounter, part: str, limit: int, fp8: bool = False) -> PartPlan:
    """Return a component's cheapest way within `limit`, or its last one."""
    ladder = list(_ladder(counter, part, limit))
    for how, maps in ladder:
        is_last = (how, maps) == ladder[-1]
        count = _counted(counter, part, how, maps, fp8, math.inf if is_last else limit)
        if count.peak <= limit or is_last:
            break
    return PartPlan(how, count, maps, cost_of(counter, part, how, maps, count))


def _ladder(counter: DrawCounter, part: str, limit: int) -> Iterator[tuple[str, int | None]]:
    """Yield the ways to keep a component, and the bytes of an operation on maps, from cheap to dear."""
    yield TURNS, None
    if part == VAE:
        yield LEAVES, None
        yield from ((LEAVES, max(int(share * limit), 2**20)) for share in _SHARES)
        return
    if part not in counter.encoders:
        yield BLOCKS, None
    yield LEAVES, None


def _counted(counter: DrawCounter, part: str, how: str, maps: int | None, fp8: bool, limit: float = math.inf) -> Count:
    is_denoiser = part not in counter.encoders and part != VAE
    return counter.count(part, how, maps, fp8=fp8 and is_denoiser, limit=limit)


def _stored(counter: DrawCounter, part: str, count: Count, fp8: bool) -> int:
    halves = fp8 and part not in counter.encoders and part != VAE
    return count.weights // 2 if halves else count.weights


def cost_of(counter: DrawCounter, part: str, how: str, maps: int | None, count: Count) -> str:
    """Return what it costs to keep a component so, in words."""
    times = {True: "a prompt", False: "an evaluation"}[part in counter.encoders] if part != VAE else "a picture"
    if how == TURNS:
        return f"{in_gb(count.moved)} cross the bus when its turn comes"
    moved = f"{in_gb(count.moved - count.tables)} cross the bus {times}"
    if count.tables and part in counter.encoders:
        return f"{moved}; its table of {in_gb(count.tables)} stays on the host"
    if maps is None:
        return moved
    return f"{moved}; maps above {in_gb(maps / KEPT)} wait on the host and cross it for each operation"
