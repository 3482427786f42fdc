"""`run.json`: what a stage did, beside its output. Written whole or not at all: no reader sees half of it."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ddx import __version__
from ddx.errors import DdxError

FILE_NAME = "run.json"
RECORDED_PACKAGES = ("torch", "triton", "diffusers", "transformers", "zarr", "numpy", "pillow")


def write_run(folder: str | Path, record: Mapping[str, Any], *, finished: bool) -> Path:
    """Write `record` with `"finished": finished` to `folder`/run.json by temporary file and rename; return its path."""
    return write_json(Path(folder) / FILE_NAME, {**record, "finished": finished})


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as JSON to `path` by temporary file and rename; return it. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: what a killed process left is overwritten
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=False, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def sync(path: Path) -> None:
    """Bring a file, or what was created, renamed or removed in a folder, to the disk: a later rename may rely on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """Return the record of `folder`, or None when it has none. Raises DdxError when the file is not a JSON object."""
    path = Path(folder) / FILE_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DdxError(f"cannot read {path}: {error}", hint="delete the file, or run the stage again") from error
    if not isinstance(record, dict):
        raise DdxError(f"{path} does not hold a record", hint="delete the file, or run the stage again")
    return record


def versions() -> dict[str, str]:
    """Return the versions that decide a run's bytes: ddx, Python, the platform, and the packages that do arithmetic."""
    found = {"ddx": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return {**found, **_installed(RECORDED_PACKAGES)}


@functools.cache
def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those that are installed; each is a file of a thousand lines to read."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
