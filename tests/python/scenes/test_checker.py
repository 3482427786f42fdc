from __future__ import annotations

import numpy as np
import pytest

from ddx.errors import DdxError
from ddx.scenes.captions import SHAPES, parse_caption, sample_scenes
from ddx.scenes.checker import ATTRIBUTES, check, find_objects, score
from ddx.scenes.render import DrawnObject, paint, render


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list[str]]:
    """Pictures of the data set, and their captions."""
    specs = sample_scenes(400, seed=11)
    return render(specs, 12), [spec.caption for spec in specs]


def picture(*objects: DrawnObject) -> np.ndarray:
    return paint([objects], np.random.default_rng(0))


def circle(x: float, y: float, radius: float = 10.0, rgb: tuple[float, float, float] = (1.0, 0.0, 0.0)) -> DrawnObject:
    return DrawnObject("circle", x, y, radius, 0.0, rgb)


def test_the_data_sets_own_pictures_pass(drawn: tuple[np.ndarray, list[str]]) -> None:
    assert all(value >= 0.99 for value in score(*drawn).values())


def test_shuffled_captions_are_at_chance(drawn: tuple[np.ndarray, list[str]]) -> None:
    images, captions = drawn
    order = np.random.default_rng(0).permutation(len(captions))
    assert score(images, [captions[index] for index in order])["overall"] <= 0.03


def test_noise_and_blank_pictures_hold_nothing() -> None:
    rng, captions = np.random.default_rng(0), [spec.caption for spec in sample_scenes(40, seed=11)]
    noise = rng.integers(0, 256, size=(40, 64, 64, 3), dtype=np.uint8)
    assert score(noise, captions)["overall"] == 0.0
    assert score(np.full_like(noise, 128), captions)["count"] == 0.0


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a small blue circle", "colour"),
        ("a small red square", "object"),
        ("a large red circle", "size"),
        ("two small red circles", "count"),
    ],
)
def test_one_wrong_word_is_the_attribute_that_fails(caption: str, wrong: str) -> None:
    marks = {name: float(values[0]) for name, values in check(picture(circle(30, 30, 9.5)), [caption]).items()}
    assert marks[wrong] == 0.0
    assert marks["overall"] == 0.0
    others = set(ATTRIBUTES) - {wrong, "overall", "size", "relation"}
    if wrong != "count":
        assert all(marks[name] == 1.0 for name in others)


def test_relation_and_binding() -> None:
    image = picture(circle(15, 30), circle(48, 33, rgb=(0.0, 0.1, 1.0)))
    assert check(image, ["a red circle left of a blue circle"])["overall"] == [1.0]
    swapped = check(image, ["a blue circle left of a red circle"])
    assert swapped["relation"] == [0.0]
    assert swapped["object"] == swapped["colour"] == swapped["count"] == [1.0]


def test_attributes_that_the_caption_leaves_free_are_nan() -> None:
    marks = check(picture(circle(30, 30)), ["a red circle"])
    assert np.isnan(marks["size"]).all()
    assert np.isnan(marks["relation"]).all()
    assert marks["overall"] == [1.0]


def test_a_deformed_object_has_no_shape() -> None:
    blob = picture(circle(20, 30, 9.0), circle(34, 30, 9.0))
    (found,) = find_objects(blob[0])
    assert found.shape is None


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_survive_a_codec_like_blur(shape: str) -> None:
    specs = [parse_caption(f"a small cyan {shape}")] * 20
    images = render(specs, 3).astype(np.float32)
    blurred = sum(np.roll(images, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9.0
    noisy = np.clip(blurred + np.random.default_rng(0).normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    assert score(noisy, [spec.caption for spec in specs])["object"] >= 0.9


def test_wrong_inputs_are_named() -> None:
    images = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(DdxError, match="float32"):
        check(images.astype(np.float32), ["a red circle"] * 2)
    with pytest.raises(DdxError, match="with 1 captions"):
        check(images, ["a red circle"])
    with pytest.raises(DdxError, match="a cat"):
        check(images[:1], ["a cat"])
