"""The energy by frequency of drawn pictures beside real ones: blur and grain show in their octaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageFilter

from ddx.evaluation.octaves import octave_chart, octaves_of, octaves_of_files, octaves_of_reference


@pytest.fixture
def real(tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    folder.mkdir()
    picture = skimage.data.astronaut()
    for i in range(4):
        Image.fromarray(picture[30 * i : 30 * i + 96, 40 * i : 40 * i + 96]).save(folder / f"{i}.png")
    return folder


def test_blur_and_grain_are_levels_against_the_reference(real: Path) -> None:
    paths = sorted(real.glob("*.png"))
    same = octaves_of_files(paths)
    reference = octaves_of_reference(str(real), (96, 96))
    assert same is not None and reference is not None and same.count == 4
    assert same.levels(reference) == pytest.approx([0.0] * 5)
    pictures = [Image.open(path).convert("RGB") for path in paths]
    blurred = octaves_of(np.array(picture.filter(ImageFilter.GaussianBlur(2))) for picture in pictures)
    rng = np.random.default_rng(0)
    noisy = octaves_of(
        (np.array(picture) + rng.normal(0, 25, (96, 96, 3))).clip(0, 255).astype(np.uint8) for picture in pictures
    )
    assert blurred is not None and noisy is not None
    assert blurred.levels(reference)[0] < -10.0 and abs(blurred.levels(reference)[4]) < 1.0
    assert noisy.levels(reference)[0] > 3.0 and abs(noisy.levels(reference)[4]) < 1.0
    page = octave_chart({"blurred": blurred, "noisy": noisy}, "real", reference)
    assert page.count("<svg") == 1 and ">blurred<" in page.replace("</b> ", ">").replace("</span>", "<")


def test_larger_real_pictures_are_brought_to_the_size_of_the_drawn_ones(real: Path) -> None:
    (real / "small.png").write_bytes((real / "0.png").read_bytes())
    Image.open(real / "0.png").resize((32, 32)).save(real / "small.png")
    (real / "broken.png").write_bytes(b"no picture")
    found = octaves_of_reference(str(real), (48, 48))
    assert found is not None and found.size == (48, 48) and found.count == 4  # one is too small, one is broken


def test_what_cannot_be_compared_is_left_out(real: Path, tmp_path: Path) -> None:
    assert octaves_of_reference("s3://bucket/captions.parquet", (96, 96)) is None
    assert octaves_of_reference(str(real), (128, 128)) is None
    assert octaves_of_reference(str(real), (96, 64)) is None
    assert octaves_of_files([tmp_path / "missing.png"]) is None
    reference = octaves_of([np.zeros((8, 8, 3), np.uint8)])
    other = octaves_of([np.zeros((16, 16, 3), np.uint8)])
    assert reference is not None and other is not None
    assert octave_chart({"other": other}, "flat", reference) == ""
    assert reference.levels(reference) == [0.0] * 5
