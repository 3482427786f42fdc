"""One file of lines with everything that a tracker is told: settings, numbers and the paths of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ddx.json_lines import add_line, keep_lines, read_steps
from ddx.training.trackers.base import Tracked


class JSONLines:
    """`track.jsonl`: {"step", "settings" | "values" | "picture" | "weights"} a line.

    A later sitting drops what it does again.
    """

    def __init__(self, run: Tracked) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        self.path = run.folder / "track.jsonl"
        keep_lines(
            self.path, [line for line in read_steps(self.path) if line["step"] <= run.start] if run.start else []
        )
        add_line(self.path, {"step": run.start, "name": run.name, "settings": dict(run.settings)})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        add_line(self.path, {"step": step, "values": dict(values)})

    def picture(self, step: int, name: str, path: Path) -> None:
        """See :meth:`Tracker.picture`."""
        add_line(self.path, {"step": step, "picture": str(path), "name": name})

    def weights(self, step: int, path: Path) -> None:
        """See :meth:`Tracker.weights`."""
        add_line(self.path, {"step": step, "weights": str(path)})

    def close(self, *, finished: bool) -> None:
        """Nothing is open."""
