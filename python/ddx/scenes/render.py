"""Drawing scenes: antialiased signed-distance shapes over a pale gradient, 64×64 pixels.

The caption fixes little. Position, exact radius, rotation, shade and background are drawn from the generator,
so that the mean picture of a caption is a blur and regression in one step fails.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddx.scenes.captions import SHAPES, SceneSpec

Floats = NDArray[np.floating[Any]]

RESOLUTION = 64

HUES = {"red": 0.0, "yellow": 54.0, "green": 116.0, "cyan": 184.0, "blue": 236.0, "purple": 298.0}
"""Centre of each colour word's hue, in degrees."""

HUE_JITTER = 8.0
RADII = {"small": (9.0, 10.2), "large": (12.5, 15.0), None: (9.0, 15.0)}
"""Range of the radius by size word, in pixels. A radius under 8 px would be less than one latent cell."""

MAX_ROTATION = np.deg2rad(20.0)
GAP = 2.5
"""Least distance between two objects, and between an object and the border, in pixels."""

SQUARE_HALF_SIDE = 0.85
TRIANGLE_CIRCUMRADIUS = 1.2
CROSS_ARM = 1.2
CROSS_HALF_WIDTH = 0.34

# Pixel centres.
_GRID_Y, _GRID_X = np.mgrid[:RESOLUTION, :RESOLUTION].astype(np.float32) + np.float32(0.5)

# Radius of the circumscribed circle, and area, of each shape of radius 1.
_EXTENT = {"circle": 1.0, "square": SQUARE_HALF_SIDE * 2**0.5, "triangle": TRIANGLE_CIRCUMRADIUS}
_EXTENT["cross"] = float(np.hypot(CROSS_ARM, CROSS_HALF_WIDTH))
_AREA = {
    "circle": np.pi,
    "square": 4 * SQUARE_HALF_SIDE**2,
    "triangle": 3 * 3**0.5 / 4 * TRIANGLE_CIRCUMRADIUS**2,
    "cross": 8 * CROSS_ARM * CROSS_HALF_WIDTH - 4 * CROSS_HALF_WIDTH**2,
}


@dataclass(frozen=True)
class DrawnObject:
    """One object as it is drawn: centre and radius in pixels, angle in radians, colour in [0, 1]."""

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]


def radius_of_area(shape: str, area: float) -> float:
    """Return the radius in pixels of a shape that covers `area` square pixels."""
    return float(np.sqrt(area / _AREA[shape]))


def place(spec: SceneSpec, rng: np.random.Generator) -> list[DrawnObject]:
    """Choose what a caption leaves free. Placement is by construction, so no scene is ever rejected."""
    radii = np.array([rng.uniform(*RADII[obj.size]) for obj in spec.objects])
    floors = np.array([RADII[obj.size][0] for obj in spec.objects])
    if len(spec.objects) == 3:  # larger ones leave no room for chance
        radii = np.minimum(radii, rng.uniform(9.0, 11.0, size=3))
    extents = np.array([_EXTENT[obj.shape] for obj in spec.objects])
    if spec.kind == "pair":
        room = RESOLUTION - 3 * GAP
        while 2 * (radii * extents).sum() > room and (radii > floors).any():
            radii = np.maximum(floors, radii * 0.97)
        centres = np.array(_place_pair(spec.relation or "", radii * extents, rng))
    else:
        centres, radii = _place_apart(radii, floors, extents, rng)
    return [
        DrawnObject(
            shape=obj.shape,
            x=float(x),
            y=float(y),
            radius=float(radius),
            angle=float(rng.uniform(-MAX_ROTATION, MAX_ROTATION)),
            rgb=_shade(obj.colour, rng),
        )
        for obj, (x, y), radius in zip(spec.objects, centres, radii, strict=True)
    ]


def paint(scenes: Sequence[Sequence[DrawnObject]], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw scenes over random gradients. Returns uint8 [B, 64, 64, 3]."""
    images = _backgrounds(len(scenes), rng)
    for layer in range(max(map(len, scenes))):
        for shape in SHAPES:
            rows = [row for row, scene in enumerate(scenes) if layer < len(scene) and scene[layer].shape == shape]
            if not rows:
                continue
            values = [scenes[row][layer] for row in rows]
            coverage = cover(shape, np.array([(v.x, v.y, v.radius, v.angle) for v in values]))[..., None]
            colour = np.array([v.rgb for v in values], dtype=np.float32)[:, None, None, :]
            images[rows] += coverage * (colour - images[rows])
    return (images * 255.0 + 0.5).astype(np.uint8)


def cover(shape: str, parameters: Floats) -> NDArray[np.float32]:
    """Return how far each pixel is covered, [b, 64, 64] in [0, 1]; parameters: rows of (x, y, radius, angle)."""
    x0, y0, radius, angle = (column[:, None, None] for column in parameters.astype(np.float32).T)
    dx, dy = _GRID_X - x0, _GRID_Y - y0
    cos, sin = np.cos(angle), np.sin(angle)
    distance = _signed_distance(shape, cos * dx + sin * dy, cos * dy - sin * dx, radius)
    coverage: NDArray[np.float32] = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
    return coverage


def render(specs: Sequence[SceneSpec], seed: int) -> NDArray[np.uint8]:
    """Place and draw one picture a scene, a function of the seed alone. Returns uint8 [B, 64, 64, 3]."""
    rng = np.random.default_rng(seed)
    return paint([place(spec, rng) for spec in specs], rng)


def _signed_distance(shape: str, x: Floats, y: Floats, radius: Floats) -> Floats:
    """Distance to the outline in pixels, negative inside (a bound of it beyond corners). y points down."""
    x_abs, y_abs = np.abs(x), np.abs(y)
    distance: Floats
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(x_abs, y_abs) - SQUARE_HALF_SIDE * radius
    elif shape == "triangle":
        inner = 0.5 * TRIANGLE_CIRCUMRADIUS * radius
        distance = np.maximum(y - inner, np.float32(3**0.5 / 2) * x_abs - 0.5 * y - inner)
    else:
        arm, half = CROSS_ARM * radius, CROSS_HALF_WIDTH * radius
        distance = np.minimum(np.maximum(x_abs - arm, y_abs - half), np.maximum(x_abs - half, y_abs - arm))
    return distance


def _place_pair(relation: str, extents: Floats, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Place two objects with free room along the relation's axis, and the offset across it under 0.6 of that along."""
    first, second = extents if relation in ("left of", "above") else extents[::-1]
    slack = RESOLUTION - 3 * GAP - 2 * (first + second)
    cuts = np.sort(rng.uniform(0, max(slack, 0.0), size=2))
    along_first = GAP + cuts[0] + first
    along_second = along_first + first + GAP + (cuts[1] - cuts[0]) + second
    across_first = rng.uniform(first + GAP, RESOLUTION - first - GAP)
    reach = 0.6 * (along_second - along_first)
    low = max(second + GAP, across_first - reach)
    high = min(RESOLUTION - second - GAP, across_first + reach)
    across_second = rng.uniform(min(low, high), max(low, high))
    ends = [(along_first, across_first), (along_second, across_second)]
    if relation in ("right of", "below"):
        ends.reverse()
    return ends if relation in ("left of", "right of") else [(across, along) for along, across in ends]


def _place_apart(radii: Floats, floors: Floats, extents: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Place one to three objects anywhere without touching; radii shrink towards their floor if the room is short."""
    count = len(radii)
    while True:
        reach = radii * extents + GAP / 2
        low, high = reach + GAP / 2, RESOLUTION - reach - GAP / 2
        candidates = rng.uniform(low[:, None], high[:, None], size=(64, count, 2))
        free = np.ones(64, dtype=bool)
        for a in range(count):
            for b in range(a + 1, count):
                distance = np.linalg.norm(candidates[:, a] - candidates[:, b], axis=-1)
                free &= distance >= reach[a] + reach[b]
        if free.any():
            return candidates[int(np.argmax(free))], radii
        radii = np.maximum(floors, radii * 0.97)


def _shade(colour: str, rng: np.random.Generator) -> tuple[float, float, float]:
    hue = (HUES[colour] + rng.uniform(-HUE_JITTER, HUE_JITTER)) / 360.0
    return colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.75, 1.0), rng.uniform(0.7, 1.0))


def _backgrounds(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Linear gradients between two nearly grey colours (chroma at most 0.12). Returns float32 [B, 64, 64, 3]."""
    grey = rng.uniform(0.1, 0.95, size=(count, 2, 1))
    ends = np.clip(grey + rng.uniform(-0.06, 0.06, size=(count, 2, 3)), 0.0, 1.0)
    angle = rng.uniform(0, 2 * np.pi, size=(count, 1, 1))
    half = RESOLUTION / 2
    along = ((_GRID_X - half) * np.cos(angle) + (_GRID_Y - half) * np.sin(angle)) / (2 * half * 2**0.5) + 0.5
    weight = along[..., None]
    mixed = ends[:, None, None, 0] * (1 - weight) + ends[:, None, None, 1] * weight
    images: NDArray[np.float32] = mixed.astype(np.float32)
    return images
