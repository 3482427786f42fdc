"""What is known of a folder that `ddx prepare` wrote: a teacher made of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddx.run_record import read_run


def prepared_record(folder: Path) -> dict[str, Any] | None:
    """Return its run.json; None for any other pipeline.

    "teacher_fingerprint" is that of the teacher it was made of, whose stores it shares; "guidance", "resolution" and
    "draws_scenes" are that one's too.
    """
    record = read_run(folder)
    return record if record is not None and record.get("prepared_from") else None
