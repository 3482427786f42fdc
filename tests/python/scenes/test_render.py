from __future__ import annotations

import numpy as np
import pytest

from ddx.scenes.captions import SHAPES, parse_caption, sample_scenes
from ddx.scenes.checker import relation_holds
from ddx.scenes.render import GAP, RADII, RESOLUTION, DrawnObject, paint, place, radius_of_area, render


def test_pictures_depend_on_the_seed_alone() -> None:
    specs = sample_scenes(6, seed=0)
    first = render(specs, 7)
    assert first.shape == (6, RESOLUTION, RESOLUTION, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, render(specs, 7))
    assert (first != render(specs, 8)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_area_gives_the_radius_back(shape: str) -> None:
    drawn = DrawnObject(shape, 30.5, 33.0, 12.0, 0.2, (1.0, 0.0, 0.0))
    image = paint([[drawn]], np.random.default_rng(0))[0].astype(float) / 255
    coverage = image.max(axis=-1) - image.min(axis=-1)
    assert radius_of_area(shape, float(coverage[coverage > 0.2].sum())) == pytest.approx(12.0, rel=0.02)


def test_placement_keeps_sizes_relations_and_borders() -> None:
    rng = np.random.default_rng(0)
    for spec in sample_scenes(400, seed=1):
        drawn = place(spec, rng)
        for obj, wanted in zip(drawn, spec.objects, strict=True):
            low, high = RADII[wanted.size]
            assert low <= obj.radius <= high
            assert obj.radius <= min(obj.x, obj.y, RESOLUTION - obj.x, RESOLUTION - obj.y)
        if spec.relation is not None:
            assert relation_holds(drawn[0], drawn[1], spec.relation)
        for a, b in [(a, b) for a in drawn for b in drawn if a is not b]:
            assert np.hypot(a.x - b.x, a.y - b.y) > 0.85 * (a.radius + b.radius) + GAP / 2


def test_the_caption_leaves_much_free() -> None:
    """The mean picture of one caption is a blur: no pixel of it has an object's chroma."""
    images = render([parse_caption("a small red circle")] * 200, 0).astype(float)
    mean = images.mean(axis=0)
    assert (mean.max(axis=-1) - mean.min(axis=-1)).max() < 0.3 * 255
