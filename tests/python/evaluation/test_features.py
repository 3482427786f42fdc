"""The feature space: fixed, and moved by what makes pictures worse."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ddx.evaluation.features import NUM_FEATURES, extract
from ddx.metrics.frechet import frechet_distance
from ddx.metrics.precision_recall import precision_recall
from ddx.scenes.captions import parse_caption, sample_captions
from ddx.scenes.render import render

CAPTIONS = sample_captions(150, seed=0)


@pytest.fixture(scope="module")
def reference() -> NDArray[np.float64]:
    specs = [parse_caption(caption) for caption in CAPTIONS]
    return extract(np.concatenate([render(specs, seed=seed) for seed in (1, 2)]))


@pytest.fixture(scope="module")
def features(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    return extract(pictures)


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return render([parse_caption(caption) for caption in CAPTIONS], seed=3)


def _corrupt(kind: str, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    if kind == "blur":
        return ndimage.gaussian_filter(pictures, (0, 1.5, 1.5, 0))
    if kind == "noise":
        return np.clip(pictures + rng.normal(0, 8, pictures.shape), 0, 255).astype(np.uint8)
    if kind == "grey":
        return np.repeat(pictures.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    if kind == "few modes":
        return np.concatenate([pictures[:10]] * 15)
    if kind == "no red or blue":
        kept = [i for i, caption in enumerate(CAPTIONS) if "red" not in caption and "blue" not in caption]
        return pictures[(kept * 4)[: len(pictures)]]
    specs = [parse_caption(caption) for caption in CAPTIONS]  # the mean of several pictures of one caption
    return np.mean([render(specs, seed=10 + i) for i in range(4)], axis=0).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("blur", 2.0), ("noise", 2.0), ("grey", 20.0), ("few modes", 3.0), ("no red or blue", 1.4), ("mean", 4.0)],
    ids=lambda value: str(value),
)
def test_corruptions_raise_the_distance(
    kind: str,
    factor: float,
    reference: NDArray[np.float64],
    features: NDArray[np.float64],
    pictures: NDArray[np.uint8],
) -> None:
    floor = frechet_distance(reference, features)
    assert frechet_distance(reference, extract(_corrupt(kind, pictures))) > factor * floor


def test_more_of_a_corruption_is_further(reference: NDArray[np.float64], pictures: NDArray[np.uint8]) -> None:
    blurred = [ndimage.gaussian_filter(pictures, (0, size, size, 0)) for size in (0.7, 1.5, 3.0)]
    distances = [frechet_distance(reference, extract(images)) for images in blurred]
    assert distances == sorted(distances)


def test_dropped_modes_cost_recall_and_not_precision(
    reference: NDArray[np.float64], features: NDArray[np.float64], pictures: NDArray[np.uint8]
) -> None:
    precision, recall = precision_recall(reference, features)
    assert precision > 0.75 and recall > 0.75
    few_precision, few_recall = precision_recall(reference, extract(_corrupt("few modes", pictures)))
    assert few_precision > 0.6 and few_recall < 0.3


def test_features_are_fixed_and_of_one_picture_each(pictures: NDArray[np.uint8]) -> None:
    features = extract(pictures[:70])
    assert features.shape == (70, NUM_FEATURES) and features.dtype == np.float64
    np.testing.assert_allclose(extract(pictures[66:67])[0], features[66], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(extract(pictures[:70]), features)
    large = np.repeat(np.repeat(pictures[:2], 3, axis=1), 3, axis=2)  # the same pictures at 192 pixels
    assert np.linalg.norm(extract(large) - features[:2]) < 0.35 * np.linalg.norm(features[0] - features[1])
    with pytest.raises(ValueError, match="uint8"):
        extract(pictures[:2].astype(np.float32))  # type: ignore[arg-type]
