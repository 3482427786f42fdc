"""Decoders draw what other programs draw, or say that they cannot: never a wrong picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fuzz_decoders import LEAST_PSNR, SIZES, decoded, differences, psnr
from jpeg_writer import Layout, write_jpeg
from picture_encodings import by_pillow, saved, smooth


def test_every_encoding_looks_as_elsewhere(tmp_path: Path) -> None:
    wrong = [found for seed in range(len(SIZES)) for found in differences(seed, 2, tmp_path)]
    assert not wrong, "\n".join(f"{encoding.format}: {reason}: {encoding.settings}" for encoding, reason in wrong)


def test_a_jpeg_is_right_in_every_order_of_scans(tmp_path: Path) -> None:
    planes = smooth(np.random.default_rng(1), 61, 47).astype(np.float64)
    layouts = [
        Layout(sampling=sampling, scans=scans, restart=restart)
        for sampling in (
            ((2, 2), (1, 1), (1, 1)),
            ((1, 1), (1, 1), (1, 1)),
            ((2, 1), (1, 1), (1, 1)),
            ((1, 1), (2, 1), (1, 2)),
        )
        for scans in ([(0,), (1,), (2,)], [(0, 1), (2,)], [(2,), (0, 1)], [(0, 1, 2)])
        for restart in (0, 3)
    ]
    made = [write_jpeg([planes[..., index] for index in range(3)], layout) for layout in layouts]
    found, end = decoded(made, (61, 47), tmp_path)
    assert end.status == ["ok"] * len(made), end.detail
    for row, (layout, encoded) in enumerate(zip(layouts, made, strict=True)):
        assert psnr(found[row], by_pillow(encoded)) >= LEAST_PSNR, layout


def linear_profile() -> bytes:
    """sRGB's profile with the curves of light itself."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(int.from_bytes(profile[128:132], "big")):
        at = 132 + 12 * entry
        if profile[at : at + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            start = int.from_bytes(profile[at + 4 : at + 8], "big")
            profile[start : start + 12] = b"curv\0\0\0\0\0\0\0\0"  # no entries: the identity
    return bytes(profile)


@pytest.mark.parametrize("side", [60, 200])
def test_a_profile_is_applied_to_the_pixels_before_they_are_resized(tmp_path: Path, side: int) -> None:
    """At full size, and shrunk, where stripes of a linear profile average to another colour than those of sRGB."""
    pixels = smooth(np.random.default_rng(3), 200, 200)
    pixels[:, ::2] //= 8
    profile = ImageCms.ImageCmsProfile(io.BytesIO(linear_profile()))
    image, srgb = Image.fromarray(pixels), ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(image, profile, srgb)
    assert expected is not None
    shrunk = np.asarray(expected.resize((side, side), Image.Resampling.LANCZOS))
    made = [
        saved(image, "PNG", icc_profile=profile.tobytes()),
        saved(image, "WEBP", lossless=True, icc_profile=profile.tobytes()),
    ]
    found, end = decoded(made, (side, side), tmp_path)
    assert end.status == ["ok", "ok"]
    for row in (0, 1):
        assert psnr(found[row], shrunk) >= 45
