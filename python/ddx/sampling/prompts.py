"""Which prompts to draw: those given, those in a file, or the standard ones of the student's teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddx.errors import UsageError


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Return the lines of a UTF-8 text file, without empty ones. UsageError when there are none or it is no text."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text", hint="--prompts takes a text file with one prompt a line"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check the path of --prompts") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UsageError(f"{path} holds no prompt", hint="--prompts takes a text file with one prompt a line")
    return prompts


def standard_prompts(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the standard prompts of the teacher in a student's run.json, as `Teacher.validation_prompts` has them.

    The teacher itself need not be there any more: a student is complete without it.
    """
    from ddx.teachers.prompts import STANDARD_PROMPTS, scene_prompts

    recorded = record.get("validation_prompts")
    if recorded:
        return tuple(str(prompt) for prompt in recorded)
    names = {record.get("teacher"), record.get("teacher_source")}
    return scene_prompts() if "sana-tiny" in names else STANDARD_PROMPTS
