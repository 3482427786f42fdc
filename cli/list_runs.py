"""`ddx list runs`: what each distillation in the workspace has come to, read from the files that it leaves.

No torch, and no file is trusted: a run may be half written, broken by hand, or going on while it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx.errors import DdxError
from ddx.run_record import read_run
from ddx.workspace import Workspace

TAIL = 1 << 16  # bytes of a file of lines in which its last whole line is looked for


def runs(workspace: Workspace) -> list[dict[str, Any]]:
    """Return every run under students/, the newest first: JSON values, None for what its files do not say."""
    folder = workspace.root / "students"
    try:
        paths = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []
    found = [(_modified(path), path.name, _run(path)) for path in paths]
    return [run for _, _, run in sorted(found, key=lambda one: one[:2], reverse=True)]


def shown(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run as a row of the table."""
    done, planned = run["steps"], run["train_steps"]
    best = run["best"] or {}
    return {
        "run": run["name"],
        "method": run["method"],
        "teacher": None if run["teacher"] is None else Path(run["teacher"]).name,
        "state": run["state"],
        "steps": None if done is None else f"{done}/{planned}" if planned and planned != done else done,
        "pictures": run["images_seen"],
        "time": None if run["seconds"] is None else _duration(run["seconds"]),
        "memory": None if run["peak_memory_bytes"] is None else f"{run['peak_memory_bytes'] / 1e9:.2f} GB",
        "score": _score(run["scores"]),
        "best": f"step {best['step']}" if "step" in best else None,
        "alarms": " ".join(run["alarms"]) or None,
    }


def _run(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = {"name": path.name, "path": str(path), "state": "unfinished", "problem": None}
    record: Mapping[str, Any] = {}
    try:
        read = read_run(path)
        if read is None:
            run |= {"state": "broken", "problem": "it has no run.json"}
        record = read or {}
    except DdxError as error:
        run |= {"state": "broken", "problem": error.message}
    if record.get("finished") is True:
        run["state"] = "finished"
    config = _mapping(record.get("config"))
    last = _last_line(path / "metrics.jsonl")
    batch = _number(config.get("batch_size"))
    images = _number(record.get("images_seen"))
    steps = _number(last.get("step"))
    if run["state"] == "finished" and images is not None and batch:
        steps = images / batch
    elif steps is not None and batch:
        images = steps * batch
    look = _last_line(path / "watch.jsonl")
    alarms = record.get("alarms", [alarm.get("name") for alarm in _mappings(look.get("alarms"))])
    best = _mapping(record.get("best")) or _best(path)
    return {
        **run,
        "method": _text(record.get("method")),
        "teacher": _text(record.get("teacher")),
        "steps": None if steps is None else int(steps),
        "train_steps": _whole(config.get("train_steps")),
        "images_seen": None if images is None else int(images),
        "seconds": _first(record.get("seconds"), last.get("seconds")),
        "peak_memory_bytes": _first(record.get("peak_memory_bytes"), last.get("peak_memory_bytes")),
        "scores": _scores(path),
        "best": best or None,
        "alarms": [str(name) for name in alarms if name] if isinstance(alarms, Sequence) else [],
    }


def _best(path: Path) -> dict[str, Any]:
    found = _json(path / "watch" / "best.json")
    return {key: found[key] for key in ("step", "metric", "value") if key in found}


def _scores(path: Path) -> list[dict[str, Any]]:
    """Return the student's rows of its last evaluation: steps, and overall or Fréchet distance."""
    rows = _mappings(_json(path / "scores.json").get("rows"))
    return [
        {"steps": row.get("steps"), "overall": _number(row.get("overall")), "frechet": _number(row.get("frechet"))}
        for row in rows
        if row.get("model") == "student"
    ]


def _score(scores: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the best of the step counts in a few words: the share drawn right, or the distance."""
    for name, sign in (("overall", -1.0), ("frechet", 1.0)):
        known = [row for row in scores if row[name] is not None]
        if known:
            row = min(known, key=lambda one: sign * one[name])
            return f"{name} {row[name]:.3g} ({row['steps']} steps)"
    return None


def _last_line(path: Path) -> dict[str, Any]:
    """Return the last whole line of a file of JSON lines that has the most: nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:  # torn by a kill, or cut by our window
            continue
        if isinstance(value, dict):
            found = {**value, **found}  # a grid's line has no seconds: an earlier one has
            if "seconds" in found or "alarms" in found:
                break
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _first(*values: Any) -> float | None:
    return next((number for value in values if (number := _number(value)) is not None), None)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _modified(path: Path) -> float:
    times = []
    for name in ("", "run.json", "metrics.jsonl"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
