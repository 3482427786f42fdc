"""One ddx command in a process of its own, with its time and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DDX = ("-m", "ddx.cli.main")


def measured(
    arguments: Sequence[str],
    folder: Path,
    *,
    log: str = "ddx",
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = DDX,
) -> dict[str, Any]:
    """Run `ddx arguments` in `folder`; return its times, its peak memory in GiB and the JSON that it printed.

    `program`: what Python runs in its place.

    What it says goes to `<log>.out` and, with an `environment` over this process's own, `<log>.err`. Raises SystemExit
    when it fails.
    """
    began, out = time.monotonic(), folder / f"{log}.out"
    errors = None if environment is None else (folder / f"{log}.err").open("w")
    with out.open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments, "--json"],
            stdout=stdout,
            stderr=errors,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
    if errors is not None:
        errors.close()
    if status != 0:
        code = os.waitstatus_to_exitcode(status)  # negative: the signal that ended it
        raise SystemExit(f"{_shown(arguments)} ended with {code}")
    return {
        "command": _shown(arguments),
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_gib": round(usage.ru_maxrss / 1024**2, 2),
        "printed": json.loads(out.read_text().replace(f"{folder}/", "") or "null"),
    }


def once(
    arguments: Sequence[str],
    folder: Path,
    *,
    log: str,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = DDX,
) -> float:
    """Run a command unless `<log>.json` says that it was run before; return the seconds of processor that it took.

    Another command of that name is run, so that a changed recipe is not scored by its earlier student.
    """
    cost, command = folder / f"{log}.json", _shown(arguments)
    kept: dict[str, Any] = json.loads(cost.read_text()) if cost.exists() else {}
    if kept.get("command") != command:
        kept = measured(arguments, folder, log=log, environment=environment, program=program)
        cost.write_text(json.dumps(kept))
    return float(kept["processor_seconds"])


def _shown(arguments: Sequence[str]) -> str:
    return " ".join(("ddx", *arguments))
