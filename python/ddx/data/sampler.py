"""A teacher's sampler as a command asks for it: its name, and for analytic-dpm the store that it learns from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddx.errors import UsageError
from ddx.progress import Progress
from ddx.teachers.samplers.names import ANALYTIC
from ddx.teachers.samplers.sampler import TeacherSampler, check_sampler
from ddx.workspace import Workspace

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher


def check_data(sampler: str, data: Path | None, flag: str = "--data") -> None:
    """Raise UsageError where a store is named for a sampler that learns from none."""
    if data is not None and sampler != ANALYTIC:
        raise UsageError(
            f"{flag} {data} is the store of {ANALYTIC}, and sampler = {sampler}", hint=f"leave {flag} away"
        )


def open_sampler(
    name: str,
    teacher: Teacher,
    workspace: Workspace,
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> TeacherSampler:
    """Return the sampler; of analytic-dpm with the variances of `data`, else of the teacher's newest store.

    Nothing is measured yet. Raises UsageError for a sampler that cannot draw with the teacher, and where no store fits.
    """
    check_sampler(name, teacher)
    if name != ANALYTIC:
        return TeacherSampler(name=name)
    from ddx.data.store import Store
    from ddx.data.variances import StoreVariances

    if data is None:
        wanted = teacher.fingerprint()
        data = workspace.newest_store(lambda found: found.record.get("fingerprint") == wanted)
        if data is None:
            raise UsageError(
                f"sampler = {name} learns its variances from latents, and {workspace.root / 'data'} has no finished "
                f"store of {teacher.name}",
                hint="name one with --data, or `ddx precompute DATA.parquet` with this --teacher",
            )
        if progress is not None:
            progress.log(f"variances of {data}, the newest store of {teacher.name}")
    return TeacherSampler(name=name, variances=StoreVariances(Store(data), teacher, progress=progress))
