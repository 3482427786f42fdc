"""The family of a teacher that may not be here: from its name, its folder or its hub id, without weights."""

from __future__ import annotations

from pathlib import Path

from ddx.teachers import hub
from ddx.teachers.families.table import find_family
from ddx.teachers.prepared import prepared_record
from ddx.teachers.registry import TEACHERS, is_hub_id


def origin_of(teacher: str) -> str:
    """Return the teacher that a prepared one was made of; any other teacher is its own origin."""
    record = prepared_record(Path(teacher).expanduser())
    return teacher if record is None else str(record["prepared_from"])


def name_of(teacher: str) -> str:
    """Return the name under which ddx knows a teacher, also one that is given by its hub id; else the text itself."""
    return next((spec.name for spec in TEACHERS.values() if teacher == spec.source), teacher)


def family_of(teacher: str) -> str | None:
    """Return the family's name, a row of the table; None where nothing here or on the hub tells it.

    Of a hub id that is not in the cache at most `model_index.json` is fetched.
    """
    for text in dict.fromkeys((origin_of(teacher), teacher)):  # an origin may be gone, and has the same class
        spec = TEACHERS.get(name_of(text))
        if spec is not None:
            return spec.family
        folder = Path(text).expanduser()
        pipeline = None
        if (folder / "model_index.json").is_file():
            pipeline = hub.local_source(folder).pipeline
        elif is_hub_id(text):
            pipeline = hub.pipeline_class(text)
        family = find_family(pipeline) if pipeline else None
        if family is not None:
            return family.name
    return None


def weights_are_here(teacher: str) -> bool:
    """Return whether a teacher opens without a network; True also for a wrong name: opening it says what is wrong."""
    spec = TEACHERS.get(teacher)
    if spec is not None:
        return spec.source == "bundled" or hub.is_cached(spec.source, spec.revision)
    return Path(teacher).expanduser().exists() or not is_hub_id(teacher) or hub.is_cached(teacher, "main")
