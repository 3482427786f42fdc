"""The energy of drawn pictures by octave of frequency, beside a reference's: blur and grain, each at its scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddx.chart import STYLE, Chart, figure
from ddx.errors import DdxError
from ddx.evaluation.picture_files import of_folder, picture_paths, read_picture, square

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ddx.evaluation.picture_files import Picture

MOST = 256  # pictures of a row that are looked at
LEAST = 1e-12  # of an energy, so that flat pictures have a level


@dataclass(frozen=True, kw_only=True)
class Octaves:
    """Mean energies of luma, float64 `[5]`, the finest octave first, of `count` pictures of `size` (height, width)."""

    energies: NDArray[np.float64]
    size: tuple[int, int]
    count: int

    def levels(self, reference: Octaves) -> list[float]:
        """Return how far each octave is above the reference's, in decibels."""
        return [float(value) for value in 10.0 * np.log10((self.energies + LEAST) / (reference.energies + LEAST))]


def octaves_of(pictures: Iterable[Picture]) -> Octaves | None:
    """Return the mean of pictures, uint8 `[H, W, 3]`; those of another size than the first do not count."""
    import torch

    from ddx.metrics.pictures import octaves

    rows: list[NDArray[np.float64]] = []
    size: tuple[int, int] | None = None
    for picture in pictures:
        size = size or (picture.shape[0], picture.shape[1])
        if picture.shape[:2] == size:
            rows.append(octaves(torch.from_numpy(np.ascontiguousarray(picture))[None])[0].numpy())
    if size is None:
        return None
    return Octaves(energies=np.mean(rows, axis=0), size=size, count=len(rows))


def octaves_of_files(paths: Iterable[Path]) -> Octaves | None:
    """Return the mean of the first pictures of these files; those that cannot be read do not count."""
    return octaves_of(picture for path in list(paths)[:MOST] if (picture := _read(path)) is not None)


def octaves_of_reference(source: str | None, size: tuple[int, int] | None) -> Octaves | None:
    """Return the mean of the first pictures of a folder, brought to the size of the drawn ones by a smaller scale.

    None where there is none to read: a source that would be fetched again, statistics, pictures that are not square or
    all smaller than the drawn ones.
    """
    folder = Path(source).expanduser() if source else None
    if folder is None or size is None or size[0] != size[1] or not folder.is_dir() or not picture_paths(folder):
        return None
    found = (picture for path in of_folder(folder, MOST).files if (picture := _read(path)) is not None)
    return octaves_of(square(picture, size[0]) for picture in found if min(picture.shape[:2]) >= size[0])


def octave_chart(rows: Mapping[str, Octaves], name: str, reference: Octaves) -> str:
    """Return a chart of the rows over frequency, as HTML; nothing where no row has the reference's size.

    name: the reference in words, as a reader knows it.
    """
    lines = {
        title: list(enumerate(row.levels(reference), start=1))
        for title, row in rows.items()
        if row.size == reference.size
    }
    if not lines:
        return ""
    chart = Chart(
        title=f"Energy by frequency, decibels over {name}",
        note="octave 1: the finest, up to 1/2 cycle a pixel; each next one half as fine. Below 0: blur; above: grain",
        lines=lines,
        reference=0.0,
        reference_name=name,
        x_name="octave",
        x_ticks=range(1, 1 + max(map(len, lines.values()))),
    )
    return f'<style>{STYLE}</style>\n<h2>Frequencies</h2>\n<div class="plots">{figure(chart)}</div>\n'


def _read(path: Path) -> Picture | None:
    try:
        return read_picture(path)
    except DdxError:
        return None
