"""The caption grammar of `scenes`: every caption is a formula for a scene, and every scene has one caption.

    a [size] <colour> <shape>
    a [size] <colour> <shape> <relation> a [size] <colour> <shape>
    two|three [size] <colour> <shape>s

The idea of captions that can be marked exactly is GenEval's (Ghosh et al. 2023).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ddx.errors import DdxError

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {"two": 2, "three": 3}

Split = Literal["train", "held-out"]

KIND_SHARES = {"single": 0.25, "pair": 0.45, "count": 0.30}
"""The share of each kind of scene; placement never rejects a scene, so the shares hold in any data set."""

HELD_OUT_ONE_IN = 8
"""One combination in so many belongs to the held-out split."""

_PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_OBJECT = rf"(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_PAIR = re.compile(rf"a {_OBJECT}(?: ({'|'.join(RELATIONS)}) a {_OBJECT})?")
_COUNT = re.compile(
    rf"({'|'.join(COUNTS)}) (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(_PLURALS.values())})"
)


@dataclass(frozen=True)
class ObjectSpec:
    """One object of a scene; `size` is None where the caption leaves it free."""

    shape: str
    colour: str
    size: str | None = None

    @property
    def phrase(self) -> str:
        """The noun phrase without its article, e.g. `small red circle`."""
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class SceneSpec:
    """What a caption says: one object, two related objects, or two or three equal ones."""

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None

    @property
    def kind(self) -> str:
        """`single`, `pair` or `count`."""
        if self.relation is not None:
            return "pair"
        return "single" if len(self.objects) == 1 else "count"

    @property
    def caption(self) -> str:
        """The one English sentence of this scene."""
        first = self.objects[0]
        if self.kind == "count":
            number = next(word for word, count in COUNTS.items() if count == len(self.objects))
            size = f"{first.size} " if first.size else ""
            return f"{number} {size}{first.colour} {_PLURALS[first.shape]}"
        if self.relation is None:
            return f"a {first.phrase}"
        return f"a {first.phrase} {self.relation} a {self.objects[1].phrase}"


def parse_caption(caption: str) -> SceneSpec:
    """Return the scene that a caption describes; DdxError when it is no sentence of the grammar."""
    text = " ".join(caption.lower().strip().rstrip(".").split())
    if match := _PAIR.fullmatch(text):
        size, colour, shape, relation, size2, colour2, shape2 = match.groups()
        first = ObjectSpec(shape, colour, size)
        if relation is None:
            return SceneSpec((first,))
        if colour != colour2:
            return SceneSpec((first, ObjectSpec(shape2, colour2, size2)), relation)
    elif match := _COUNT.fullmatch(text):
        number, size, colour, plural = match.groups()
        shape = next(name for name, many in _PLURALS.items() if many == plural)
        if not (number == "three" and size == "large"):
            return SceneSpec((ObjectSpec(shape, colour, size),) * COUNTS[number])
    raise DdxError(
        f"{caption!r} is not a caption of the scenes grammar",
        hint="use captions such as 'a small red circle above a blue square' or 'two green crosses'",
    )


def split_of(spec: SceneSpec) -> Split:
    """Return the split that a combination belongs to: a hash of its caption, so it never depends on a seed."""
    digest = hashlib.sha256(spec.caption.encode()).digest()
    return "held-out" if digest[0] % HELD_OUT_ONE_IN == 0 else "train"


def sample_spec(rng: np.random.Generator, split: Split | None = None) -> SceneSpec:
    """Draw one scene of `split` (None: of both); the kind is drawn first, so that each kind keeps its share."""
    kind = rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values()))
    while True:
        spec = _sample_kind(rng, str(kind))
        if split is None or split_of(spec) == split:
            return spec


def sample_scenes(num: int, seed: int, split: Split | None = None) -> list[SceneSpec]:
    """Return `num` scenes of `split`, a function of the seed alone."""
    rng = np.random.default_rng(seed)
    return [sample_spec(rng, split) for _ in range(num)]


def sample_captions(num: int, seed: int, split: Split | None = None) -> list[str]:
    """Return `num` captions of `split`, a function of the seed alone."""
    return [spec.caption for spec in sample_scenes(num, seed, split)]


def _sample_kind(rng: np.random.Generator, kind: str) -> SceneSpec:
    if kind == "pair":
        colours = rng.choice(len(COLOURS), size=2, replace=False)
        objects = tuple(_sample_object(rng, COLOURS[colour]) for colour in colours)
        return SceneSpec(objects, RELATIONS[rng.integers(len(RELATIONS))])
    spec = _sample_object(rng, COLOURS[rng.integers(len(COLOURS))])
    if kind == "single":
        return SceneSpec((spec,))
    count = int(rng.integers(2, 4))
    if count == 3 and spec.size == "large":  # three large objects do not fit
        spec = ObjectSpec(spec.shape, spec.colour)
    return SceneSpec((spec,) * count)


def _sample_object(rng: np.random.Generator, colour: str) -> ObjectSpec:
    size = (None, *SIZES)[rng.integers(3)]
    return ObjectSpec(SHAPES[rng.integers(len(SHAPES))], colour, size)
