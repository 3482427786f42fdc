"""Pictures to compare: files of a folder, rows of a source, or what a store keeps; bad ones are counted and skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddx.errors import DdxError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
DEFAULT_SIDE = 512  # of the pictures of a source that is not told a size
Picture = NDArray[np.uint8]


@dataclass
class Pictures:
    """Pictures to be read one after another, more than once if they are files.

    loaders: one a picture, each returns uint8 `[H, W, 3]` or raises. count: None where nobody knows it before the end.
    skipped: pictures that could not be read, by reason; filled while they are read.
    """

    name: str
    loaders: Callable[[], Iterator[Callable[[], Picture]]]
    count: int | None
    files: Sequence[Path] = ()
    skipped: Counter[str] = field(default_factory=Counter)


def of_files(paths: Sequence[Path], name: str) -> Pictures:
    """Return the pictures of files, in their order."""

    def loaders() -> Iterator[Callable[[], Picture]]:
        return (lambda path=path: read_picture(path) for path in paths)  # type: ignore[misc]

    return Pictures(name=name, loaders=loaders, count=len(paths), files=tuple(paths))


def of_folder(folder: Path, limit: int | None = None) -> Pictures:
    """Return the pictures in a folder and the folders inside, by name. UsageError where there are none."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", hint="give a folder of pictures")
    paths = picture_paths(folder)
    if not paths:
        raise UsageError(f"{folder} holds no pictures", hint=f"of the kinds {', '.join(SUFFIXES)}")
    return of_files(paths[:limit], str(folder))


def open_pictures(source: str, side: int | None, limit: int | None = None) -> Pictures:
    """Return the pictures of a folder, of any source that precompute reads, or those that a store keeps.

    side: that of a source's pictures, which are cropped to a square; a folder's stay as they are.
    """
    path = Path(source).expanduser()
    if (path / "zarr.json").is_file():
        from ddx.data.stored_pictures import kept_pictures

        return _streamed(source, lambda skipped: kept_pictures(path), limit)
    if path.is_dir() and picture_paths(path):
        return of_folder(path, limit)
    from ddx.data.stored_pictures import source_pictures

    chosen = side or DEFAULT_SIDE
    return _streamed(source, lambda skipped: source_pictures([source], chosen, limit=limit, skipped=skipped), limit)


def picture_paths(folder: Path) -> list[Path]:
    """Return the picture files in a folder and the folders inside, by path; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_picture(path: Path) -> Picture:
    """Return a picture, upright, as uint8 `[H, W, 3]`, transparency as white. DdxError where it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DdxError("missing_file") from error
    except Exception as error:  # Pillow's plug-ins raise whatever they meet
        raise DdxError("unreadable") from error


def square(picture: Picture, side: int | None) -> Picture:
    """Return the middle square of a picture, resized to `side` by Lanczos and rounded; itself for None."""
    if side is None or picture.shape[:2] == (side, side):
        return picture
    from PIL import Image

    height, width = picture.shape[:2]
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box=box))


def _streamed(name: str, read: Callable[[Counter[str]], Iterator[Picture]], limit: int | None) -> Pictures:
    skipped = Counter[str]()

    def loaders() -> Iterator[Callable[[], Picture]]:
        for number, picture in enumerate(read(skipped)):
            if limit is not None and number >= limit:
                return
            yield lambda picture=picture: picture  # type: ignore[misc]

    return Pictures(name=name, loaders=loaders, count=None, skipped=skipped)
