"""Which store a distillation reads: the one given, the one it began with, or the newest of this teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx.data.segments import segments_of
from ddx.data.store import Store
from ddx.data.synthetic import Synthetic, synthetic_of
from ddx.errors import UsageError
from ddx.teachers.base import Teacher
from ddx.teachers.samplers.names import DETERMINISTIC
from ddx.training.config import DistillConfig
from ddx.workspace import Workspace


def find_store(
    config: DistillConfig,
    teacher: Teacher,
    workspace: Workspace,
    before: Mapping[str, Any] | None = None,
    *,
    synthetic: bool = False,
) -> tuple[Store, str]:
    """Return the store and a line that says which it is. `before` is the record of the run to go on with.

    `synthetic`: of the stores that nobody named, only those that the teacher drew.
    Raises UsageError when there is none, or when it was made for another teacher (naming the first key that differs).
    """
    wanted = teacher.fingerprint(config.resolution)
    begun = Path(str(before["store"])) if before and before.get("store") else None
    if config.data is not None:
        path = config.data
        if begun is not None and path.resolve() != begun:
            raise UsageError(
                f"the unfinished student was started with data = {begun}, not {path}",
                hint=f"give --data {begun} to go on with it, or --out PATH for another student",
            )
        say = f"training on {path}"
    elif begun is not None:
        path, say = begun, f"training on {begun}, as before"
    else:
        found = workspace.newest_store(
            lambda artefact: (
                artefact.record.get("fingerprint") == wanted
                and (not synthetic or (_is_drawn(artefact.record) and not _of_another(artefact.record, teacher)))
            )
        )
        if found is None:
            raise _no_store(workspace, config.teacher, synthetic)
        path, say = found, f"training on {found}, the newest store of {config.teacher}"
    store = Store(path)
    check_fingerprint(store.path, store.fingerprint, wanted, config.teacher)
    return store, f"{say} ({store.num_ok} pictures)"


def require_pairs(store: Store, teacher: Teacher, guidance: Sequence[float] | None) -> str | None:
    """Return a warning if another network than the teacher's drew the store: it may be a fine-tune, or what that is of.

    Raises UsageError if no teacher drew every row of it, or not at the student's one guidance.
    """
    made = "`ddx precompute CAPTIONS.parquet --synthetic` makes one"
    if not _is_drawn(store.attributes):
        raise UsageError(
            f"pairs = stored, and the pictures of {store.path} were not all drawn by the teacher",
            hint=f"give such a store with --data: {made}; or leave --pairs away",
        )
    fresh = {how.sampler for how in _drawings(store.attributes) if not how.makes_pairs}
    if fresh:
        raise UsageError(
            f"pairs = stored, and {store.path} was drawn by {' and '.join(sorted(fresh))}, whose pictures do not "
            "follow from their first noise",
            hint=f"draw one by another --synthetic-sampler: {', '.join(DETERMINISTIC)}; or leave --pairs away",
        )
    found = {how.guidance for how in _drawings(store.attributes)}
    if guidance is not None and found != set(guidance):
        drawn, wanted = (" and ".join(f"{scale:g}" for scale in sorted(set(it))) for it in (found, guidance))
        raise UsageError(
            f"the pairs of {store.path} were drawn at guidance {drawn}, the student is for {wanted}",
            hint=f"--guidance-min {max(found):g} --guidance-max {max(found):g}",
        )
    if not _of_another(store.attributes, teacher):
        return None
    return f"warning: the pairs of {store.path} were drawn by another network than {teacher.name} has now; {made}"


def check_fingerprint(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], teacher: str) -> None:
    """Raise UsageError, naming the first key that differs, if the store was not made for this teacher."""
    for key in (*wanted, *(key for key in found if key not in wanted)):
        if found.get(key) != wanted.get(key):
            raise UsageError(
                f"{path} does not fit {teacher}: its {key} is {found.get(key)}, the teacher's is {wanted.get(key)}",
                hint=f"ddx precompute DATA.parquet --teacher {teacher}, or give the store's own --teacher",
            )


def _drawings(attributes: Mapping[str, Any]) -> list[Synthetic]:
    found = [synthetic_of(segment.settings) for segment in segments_of(attributes)]
    return [how for how in found if how is not None]


def _is_drawn(attributes: Mapping[str, Any]) -> bool:
    return all(synthetic_of(segment.settings) is not None for segment in segments_of(attributes))


def _of_another(attributes: Mapping[str, Any], teacher: Teacher) -> bool:
    """Whether some row was drawn by another network; stores of before it was recorded do not say."""
    if teacher.made_of != teacher.name:  # a prepared teacher draws what the one that it was made of draws
        return False
    return any(how.network not in (None, teacher.network_identity()) for how in _drawings(attributes))


def _no_store(workspace: Workspace, teacher: str, synthetic: bool) -> UsageError:
    others = [store.path.name for store in workspace.stores()]
    wrong = "that it did not draw, of other teachers or unfinished" if synthetic else "of other teachers or unfinished"
    seen = f"; it holds {', '.join(others[:3])} {wrong}" if others else ""
    drawn, flag = (" that the teacher drew", " --synthetic") if synthetic else ("", "")
    return UsageError(
        f"no finished store of {teacher}{drawn} in {workspace.root / 'data'}{seen}",
        hint=f"ddx precompute DATA.parquet --teacher {teacher}{flag}",
    )
