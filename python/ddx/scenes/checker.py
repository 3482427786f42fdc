"""The exact judge of `scenes`: which attributes of its caption a picture shows.

Saturated pixels are grouped by hue into connected components. A component's radius is read off its area, and its shape
is the one whose clean drawing, of that area and turned as the component's moments say, overlaps it best. The categories
are GenEval's (Ghosh et al. 2023): object, colour, count, size, relation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ddx.errors import DdxError
from ddx.scenes.captions import COLOURS, SHAPES, SceneSpec, parse_caption
from ddx.scenes.render import HUES, RADII, Floats, cover, radius_of_area

ATTRIBUTES = ("object", "colour", "count", "size", "relation", "overall")

MIN_CHROMA = 0.30
"""Chroma (largest minus smallest channel) above which a pixel is part of an object; backgrounds stay under 0.12."""

MIN_AREA = 40
"""Pixels under which a component is no object; the smallest object drawn covers 150."""

STRAY_AREA = 25
"""Pixels from which a component that is no object still counts as one too many."""

SIZE_BOUNDARY = (RADII["small"][1] + RADII["large"][0]) / 2
MIN_OVERLAP = 0.7
"""Intersection over union with the best clean drawing, under which a component has no shape."""


@dataclass(frozen=True)
class FoundObject:
    """A component of a picture; `shape` is None where its moments are those of no shape. Pixels, y down."""

    shape: str | None
    colour: str
    x: float
    y: float
    radius: float


def find_objects(image: NDArray[np.uint8]) -> list[FoundObject]:
    """Return the objects in one picture, uint8 [64, 64, 3]."""
    pixels = image.astype(np.float32) / 255.0
    high, low = pixels.max(axis=-1), pixels.min(axis=-1)
    chroma = high - low
    mask = chroma > MIN_CHROMA
    if not mask.any():
        return []
    nearest = _nearest_hue(pixels, high, chroma)
    found = []
    for index in np.unique(nearest[mask]):
        labels, count = ndimage.label(mask & (nearest == index))
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        for label in range(1, count + 1):
            if areas[label] >= STRAY_AREA:
                found.append(_describe(labels == label, chroma, COLOURS[index]))
    return found


def check(images: NDArray[np.uint8], captions: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Mark pictures against their captions.

    Returns one float32 array [B] for each of `ATTRIBUTES`: 1 holds, 0 does not, NaN where the caption says nothing
    about it (size, relation). `overall` is 1 where all that the caption says holds of the same objects at once.
    Raises DdxError for a caption outside the grammar and for images that are not uint8 [B, 64, 64, 3].
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) != len(captions):
        raise DdxError(
            f"the checker takes uint8 [B, 64, 64, 3] with one caption each, not {images.dtype} "
            f"{list(images.shape)} with {len(captions)} captions",
            hint="convert pictures to uint8 RGB, height and width before the channels",
        )
    rows = [_mark(find_objects(image), parse_caption(caption)) for image, caption in zip(images, captions, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=np.float32) for name in ATTRIBUTES}


def score(images: NDArray[np.uint8], captions: Sequence[str]) -> dict[str, float]:
    """Return the mean of each attribute over the pictures whose caption says something about it."""
    return {
        name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        for name, values in check(images, captions).items()
    }


def shows(found: list[FoundObject], spec: SceneSpec) -> bool:
    """Return whether these objects are what a scene says, in all that it says."""
    return _mark(found, spec)["overall"] == 1.0


def _mark(found: list[FoundObject], spec: SceneSpec) -> dict[str, float]:
    wanted = spec.objects
    marks = {
        "object": _contains([f.shape for f in found], [w.shape for w in wanted]),
        "colour": _contains([f.colour for f in found], [w.colour for w in wanted]),
        "count": len(found) == len(wanted),
        "size": False,
        "relation": False,
        "overall": False,
    }
    if marks["count"]:
        # One assignment of found to wanted objects decides, so that every attribute speaks of the same ones. Colour
        # and shape say who is who; size and relation are then judged.
        options = [_assignment(order, spec) for order in permutations(found)]
        best = max(options, key=lambda option: (all(option), option[1], option[0], option[2:]))
        marks["size"], marks["relation"], marks["overall"] = best[2], best[3], all(best)
    result = {name: float(value) for name, value in marks.items()}
    if all(w.size is None for w in wanted):
        result["size"] = float("nan")
    if spec.relation is None:
        result["relation"] = float("nan")
    return result


def _assignment(order: tuple[FoundObject, ...], spec: SceneSpec) -> tuple[bool, bool, bool, bool]:
    pairs = list(zip(order, spec.objects, strict=True))
    return (
        all(f.shape == w.shape for f, w in pairs),
        all(f.colour == w.colour for f, w in pairs),
        all(w.size is None or (f.radius > SIZE_BOUNDARY) == (w.size == "large") for f, w in pairs),
        spec.relation is None or relation_holds(order[0], order[1], spec.relation),
    )


def relation_holds(first: FoundObject, second: FoundObject, relation: str) -> bool:
    """Return whether `first` stands in `relation` to `second`: the larger component of the offset decides."""
    dx, dy = second.x - first.x, second.y - first.y
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    across = dy if relation in ("left of", "right of") else dx
    return along > abs(across)


def _contains(found: Sequence[str | None], wanted: Sequence[str]) -> bool:
    wanted_counts, found_counts = Counter(wanted), Counter(shape for shape in found if shape is not None)
    return wanted_counts <= found_counts


def _nearest_hue(pixels: Floats, high: Floats, chroma: Floats) -> NDArray[np.intp]:
    """Index into COLOURS of the nearest hue at each pixel, [64, 64]."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    safe = np.maximum(chroma, 1e-6)
    sector = np.select(
        [high == red, high == green],
        [(green - blue) / safe % 6.0, (blue - red) / safe + 2.0],
        (red - green) / safe + 4.0,
    )
    hues = np.array([HUES[name] for name in COLOURS], dtype=np.float32)
    offset = np.abs((sector[..., None] * 60.0 - hues + 180.0) % 360.0 - 180.0)
    nearest: NDArray[np.intp] = offset.argmin(axis=-1)
    return nearest


def _describe(component: NDArray[np.bool_], chroma: Floats, colour: str) -> FoundObject:
    # Half-covered border pixels carry half of the chroma: as weights they give the outline below a pixel.
    full = np.percentile(chroma[component], 75)
    weights = np.where(ndimage.binary_dilation(component), np.clip(chroma / full, 0.0, 1.0), 0.0)
    weights = np.where(component | (weights > 0.25), weights, 0.0)
    area = float(weights.sum())
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    centre_x, centre_y = float((weights * x).sum() / area), float((weights * y).sum() / area)
    overlaps = _overlaps(weights, area, centre_x, centre_y)
    shape = max(overlaps, key=overlaps.__getitem__)
    radius = radius_of_area(shape, area)
    recognised = overlaps[shape] >= MIN_OVERLAP and component.sum() >= MIN_AREA
    return FoundObject(shape if recognised else None, colour, centre_x, centre_y, radius)


def _overlaps(weights: Floats, area: float, centre_x: float, centre_y: float) -> dict[str, float]:
    """Intersection over union of a component, [64, 64] in [0, 1], with the best drawing of each shape."""
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    offset = (x - centre_x) + 1j * (y - centre_y)
    third, fourth = (np.angle((weights * offset**power).sum()) for power in (3, 4))
    # Corners point up in an upright triangle, along the diagonals in a square, along the axes in a cross.
    angles = {"circle": 0.0, "square": (fourth - np.pi) / 4, "triangle": (third - np.pi / 2) / 3, "cross": fourth / 4}
    overlaps = {}
    for shape in SHAPES:
        drawing = cover(shape, np.array([[centre_x, centre_y, radius_of_area(shape, area), angles[shape]]]))[0]
        overlaps[shape] = float(np.minimum(weights, drawing).sum() / np.maximum(weights, drawing).sum())
    return overlaps
