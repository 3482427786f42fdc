"""Captions that differ from a scene's own in one thing, and whether a drawn scene shows what a caption says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ddx.errors import DdxError
from ddx.scenes.captions import COLOURS, RELATIONS, SHAPES, SIZES, SceneSpec, parse_caption
from ddx.scenes.checker import FoundObject, shows
from ddx.scenes.render import DrawnObject

CHANGES = ("shape", "colour", "size", "number", "relation")
_WORDS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}


def altered(spec: SceneSpec, rng: np.random.Generator) -> tuple[SceneSpec, str]:
    """Return a scene with one thing changed, and which: one of `CHANGES`. It may still hold of a picture of `spec`."""
    while True:
        change = str(rng.choice(CHANGES))
        found = _with(spec, change, rng)
        if found is not None and found.caption != spec.caption and _is_sentence(found):
            return found, change


def _with(spec: SceneSpec, change: str, rng: np.random.Generator) -> SceneSpec | None:
    pair = spec.kind == "pair"
    if change == "relation":
        return replace(spec, relation=RELATIONS[rng.integers(len(RELATIONS))]) if pair else None
    if change == "number":
        return None if pair else SceneSpec(spec.objects[:1] * int(rng.integers(1, 4)))
    words = _WORDS[change]
    place = int(rng.integers(len(spec.objects)))
    other = replace(spec.objects[place], **{change: words[rng.integers(len(words))]})
    return replace(spec, objects=tuple(other if at == place or not pair else o for at, o in enumerate(spec.objects)))


def _is_sentence(spec: SceneSpec) -> bool:
    try:
        return parse_caption(spec.caption) == spec
    except DdxError:
        return False


def as_found(spec: SceneSpec, drawn: Sequence[DrawnObject]) -> list[FoundObject]:
    """Return what an exact judge would find in the picture of a scene."""
    return [FoundObject(d.shape, o.colour, d.x, d.y, d.radius) for o, d in zip(spec.objects, drawn, strict=True)]


def truths(found: Sequence[Sequence[FoundObject]], specs: Sequence[SceneSpec]) -> np.ndarray:
    """Return whether each of N pictures shows each of M scenes, bool `[N, M]`."""
    have = [sorted((o.shape or "", o.colour) for o in objects) for objects in found]
    want = [sorted((o.shape, o.colour) for o in spec.objects) for spec in specs]
    return np.array(
        [
            [h == w and shows(list(f), s) for w, s in zip(want, specs, strict=True)]
            for h, f in zip(have, found, strict=True)
        ]
    )
