"""Decoders draw what other programs draw, or say that they cannot: never a wrong picture.

A few settings of each encoder from a fixed seed in the ordinary tests. With DDX_FUZZ_SECONDS (`make fuzz`) as many as
fit into that time, from a random seed, which is printed and which DDX_FUZZ_SEED repeats; what differs is kept below
`target/tmp/fuzz/decoders`.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from ddx._core import Batch, Ingest, Input, PartEnd
from jpeg_writer import Layout, write_jpeg
from picture_encodings import Encoding, Pixels, by_pillow, encodings, saved, smooth

SIZES = [(65, 49), (17, 33), (64, 48), (100, 75), (31, 17), (129, 40), (33, 90), (16, 16)]
# Of JPEG and WebP, whose arithmetic is free in the last bit.
LEAST_PSNR = 40


def decoded(pictures: Sequence[bytes], size: tuple[int, int], folder: Path) -> tuple[dict[int, Pixels], PartEnd]:
    """What an ingest makes of pictures of one size, by row."""
    cells = [{"bytes": picture, "path": "x"} for picture in pictures]
    pq.write_table(pa.table({"image": cells, "caption": ["caption"] * len(cells)}), folder / "a.parquet")
    found: dict[int, Pixels] = {}
    source = Input([str(folder / "a.parquet")])
    with Ingest(source, sizes=[size], part_rows=len(cells), batch_size=16, parts=[0], tiff=True) as ingest:
        for item in ingest:
            if isinstance(item, Batch):
                found |= dict(zip(item.rows, np.array(item.images), strict=False))
            else:
                end = item
    return found, end


def psnr(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def difference(encoding: Encoding, ours: Pixels | None, status: str) -> str | None:
    """What is wrong with a picture; None if nothing is."""
    theirs = encoding.expected
    if theirs is None:
        try:
            theirs = by_pillow(encoding.encoded)
        except OSError:
            return None  # Pillow refuses it
    if ours is None:
        return None if encoding.may_be_refused else f"refused: {status}"
    furthest = np.abs(ours.astype(int) - theirs).max()
    if encoding.is_lossy:
        return None if psnr(ours, theirs) >= LEAST_PSNR else f"{psnr(ours, theirs):.1f} dB"
    return None if furthest <= 1 else f"off by {furthest}"


def differences(seed: int, each: int, folder: Path) -> list[tuple[Encoding, str]]:
    """The pictures that differ among `each` from every encoder."""
    made = encodings(np.random.default_rng(seed), size := SIZES[seed % len(SIZES)], each)
    found, end = decoded([encoding.encoded for encoding in made], size, folder)
    reasons = [difference(encoding, found.get(row), end.detail[row]) for row, encoding in enumerate(made)]
    return [(encoding, reason) for encoding, reason in zip(made, reasons, strict=True) if reason is not None]


def test_every_encoding_looks_as_elsewhere(tmp_path: Path, repository: Path) -> None:
    seconds = float(os.environ.get("DDX_FUZZ_SECONDS", "0"))
    seed = int(os.environ.get("DDX_FUZZ_SEED", str(time.time_ns() % 2**32 if seconds else 0)))
    print(f"decoders: seed {seed}")
    until, rounds, wrong = time.monotonic() + seconds, 0, list[str]()
    kept = repository / "target" / "tmp" / "fuzz" / "decoders"
    while rounds < len(SIZES) or time.monotonic() < until:
        for number, (encoding, reason) in enumerate(differences(seed + rounds, 2, tmp_path)):
            kept.mkdir(parents=True, exist_ok=True)
            path = kept / f"{seed + rounds}-{number}.{encoding.format}"
            path.write_bytes(encoding.encoded)
            wrong.append(f"{path}: {reason}: {encoding.settings}")
        rounds += 1
    print(f"decoders: {rounds} rounds")
    assert not wrong, "\n".join(wrong)


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
