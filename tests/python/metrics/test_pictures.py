"""Each measure against a program that others trust, and on pictures whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFilter import GaussianBlur
from scipy.fft import dctn
from scipy.spatial.distance import cdist, pdist
from skimage import color, data, transform

from ddx.metrics import pictures as measures
from ddx.watch.vector import Drawn, measured, ratio

Picture = NDArray[np.uint8]


def made() -> list[Picture]:
    """Noise, photographs and flat pictures, of odd sides too."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((32, 32), (33, 47), (64, 16))]
    photograph = (transform.resize(data.astronaut(), (96, 72), anti_aliasing=True) * 255).astype(np.uint8)
    dark = (photograph // 5).astype(np.uint8)
    return [*noise, photograph, dark, np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)]


def one(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture)[None]


@pytest.mark.parametrize("number", range(7))
def test_measures_are_those_of_skimage_and_numpy(number: int) -> None:
    picture = made()[number]
    # skimage's weights are the same Rec. 709, with a digit more
    grey = color.rgb2gray(picture)
    assert float(measures.brightness(one(picture))) == pytest.approx(grey.mean(), abs=2e-4)
    assert float(measures.contrast(one(picture))) == pytest.approx(grey.std(), abs=2e-4)
    hsv = color.rgb2hsv(picture)
    weighted = 0.0 if not picture.any() else np.average(hsv[..., 1], weights=hsv[..., 2])
    assert float(measures.saturation(one(picture))) == pytest.approx(weighted, abs=1e-9)
    assert float(measures.clipped(one(picture))) == pytest.approx(np.isin(picture, (0, 255)).mean())
    luma = picture / 255.0 @ np.array(measures.LUMA)
    found = measures.octaves(one(picture))[0].numpy()
    assert found.sum() == pytest.approx(luma.var(), rel=1e-9, abs=1e-15)
    power = dctn(luma, norm="ortho") ** 2 / luma.size
    down, across = (np.arange(side) / (2 * side) for side in luma.shape)
    expected = np.zeros(measures.NUM_OCTAVES)
    for row, fy in enumerate(down):
        for column, fx in enumerate(across):
            if row or column:  # f in (2^-(k+2), 2^-(k+1)]: k = floor(-log2 f) - 1, but for the ends
                octave = math.floor(-math.log2(math.hypot(fy, fx))) - 1
                expected[min(max(octave, 0), measures.NUM_OCTAVES - 1)] += power[row, column]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("period", "octave"), [(3, 0), (4, 1), (6, 1), (8, 2), (16, 3), (32, 4), (96, 4)])
def test_a_grating_is_in_the_octave_of_its_period(period: int, octave: int) -> None:
    wave = 127.5 + 100.0 * np.cos(2 * np.pi * (np.arange(96) + 0.5) / period)
    picture = np.repeat(np.repeat(wave.round().astype(np.uint8)[None, :, None], 96, 0), 3, 2)
    energies = measures.octaves(one(picture))[0]
    assert energies[octave] / energies.sum() > 0.99


def test_borders_do_not_hide_a_blur() -> None:
    photograph = Image.fromarray(data.astronaut()[30:126, 40:136])  # its borders differ from those opposite
    sharp, blurred = (
        measures.octaves(one(np.array(picture)))[0] for picture in (photograph, photograph.filter(GaussianBlur(2)))
    )
    assert blurred[0] < sharp[0] / 30 and blurred[1] < sharp[1] / 10
    assert blurred[4] == pytest.approx(float(sharp[4]), rel=0.05)


def test_what_is_done_to_a_picture_shows_in_its_measure() -> None:
    picture = made()[3].astype(np.float64)

    def changed(values: NDArray[np.float64]) -> dict[str, float]:
        pictures = torch.from_numpy(values.clip(0, 255).round().astype(np.uint8))[None, None]
        return measured(Drawn.of(pictures))

    before, grey = changed(picture), picture.mean(-1, keepdims=True)
    assert ratio(changed(0.5 * picture)["brightness"], before["brightness"]) == pytest.approx(0.5, abs=0.01)
    assert ratio(changed(0.5 * picture)["octave_2"], before["octave_2"]) == pytest.approx(0.5, abs=0.02)
    assert changed(grey + 0.5 * (picture - grey))["saturation"] < 0.7 * before["saturation"]
    assert changed(128 + 3.0 * (picture - 128))["clipped"] > before["clipped"] + 0.2
    noisy = changed(picture + np.random.default_rng(1).normal(0, 40, picture.shape))
    assert noisy["octave_1"] > 1.5 * before["octave_1"] and noisy["octave_5"] < 1.1 * before["octave_5"]
    small = transform.resize(picture, (24, 18), anti_aliasing=True)
    blurred = changed(transform.resize(small, picture.shape[:2], order=1))
    assert blurred["octave_1"] < 0.5 * before["octave_1"] and blurred["octave_5"] > 0.8 * before["octave_5"]


def test_variety_and_the_energy_distance_are_scipys() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(3, 5, 7)), rng.normal(size=(3, 5, 7)) + 0.3
    within = [np.mean([pdist(points).mean() for points in points_of]) for points_of in (first, second)]
    apart = ~np.eye(5, dtype=bool)
    between = np.mean([cdist(x, y)[apart].mean() for x, y in zip(first, second, strict=True)])
    ours = [torch.from_numpy(points) for points in (first, second)]
    assert float(measures.spread(ours[0])) == pytest.approx(within[0], rel=1e-9)
    assert float(measures.energy_distance(*ours)) == pytest.approx(2 * between - sum(within), rel=1e-9)
    assert float(measures.spread(ours[0][:, :1])) == 0.0
    same = torch.from_numpy(rng.normal(size=(400, 2, 4, 7)))  # equal in distribution: nothing but chance
    drawn = torch.stack([measures.energy_distance(x[:1], x[1:]) for x in same])
    assert abs(float(drawn.mean())) < 4 * float(drawn.std()) / 20
    near = same[:, :1] + 0.1 * same[:, 1:]  # from the same noises nearly the same, and still equal in distribution
    alike = torch.stack([measures.energy_distance(x, y) for x, y in zip(same[:, :1], near, strict=True)])
    assert abs(float(alike.mean())) < 4 * float(alike.std()) / 20 + 0.05


def test_the_same_picture_for_every_seed_has_no_variety() -> None:
    pictures = torch.from_numpy(np.stack([made()[0]] * 3))[None]
    drawn = measured(Drawn.of(pictures))
    assert drawn["variety_pixels"] == drawn["variety_features"] == 0.0
    assert measured(Drawn.of(torch.cat([pictures, 255 - pictures])))["variety_pixels"] == 0.0
    apart = torch.stack([torch.zeros(8, 8, 3), torch.full((8, 8, 3), 255)]).to(torch.uint8)[None]
    assert measured(Drawn.of(apart))["variety_pixels"] == pytest.approx(1.0)
    assert ratio(0.0, 0.0) == 1.0 and ratio(0.5, 0.25) == pytest.approx(2.0, rel=1e-3)
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, 3\]"):
        measures.luma(torch.zeros(1, 3, 8, 8))
