"""TensorBoard's event files: `tensorboard --logdir runs/students` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddx.training.trackers.base import Tracked


class TensorBoard:
    """Scalars, pictures, and the settings as text. A later sitting writes a file that purges what it does again."""

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = run.start + 1 if run.start else None
        self._writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)
        rows = "".join(f"| {key} | {value} |\n" for key, value in run.settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", run.start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        """See :meth:`Tracker.picture`."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def weights(self, step: int, path: Path) -> None:
        """See :meth:`Tracker.weights`; event files hold none, so it is the path."""
        self._writer.add_text("best", f"step {step}: `{path}`", step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._writer.close()
