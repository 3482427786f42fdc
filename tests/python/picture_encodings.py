"""Pictures in thousands of encodings, as programs write them and as the formats allow; for comparing decoders."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from jpeg_writer import Layout, write_jpeg

Pixels = npt.NDArray[np.uint8]
Random = np.random.Generator


@dataclass(frozen=True)
class Encoding:
    """A picture with the settings that it was encoded with."""

    format: str
    settings: str
    encoded: bytes
    is_lossy: bool = False
    expected: Pixels | None = None
    """What it shows, where Pillow shows something else."""
    may_be_refused: bool = False
    """Whether it is of a kind that no decoder here knows."""


def smooth(random: Random, width: int, height: int, channels: int = 3) -> Pixels:
    """Colours that change slowly and everywhere, so that a part in the wrong place shows."""
    coarse = random.integers(0, 256, (height // 12 + 3, width // 12 + 3, channels), dtype=np.uint8)
    fine = [
        Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
        for channel in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in fine], -1)


def saved(image: Image.Image, format: str, **settings: Any) -> bytes:
    """What Pillow writes."""
    out = io.BytesIO()
    image.save(out, format, **settings)
    return out.getvalue()


def picture(random: Random, size: tuple[int, int], mode: str) -> Image.Image:
    """A smooth picture of one of Pillow's modes."""
    if mode in ("1", "P"):
        colours = int(random.integers(2, 257)) if mode == "P" else 2
        image = Image.fromarray(smooth(random, *size))
        return image.convert("1") if mode == "1" else image.quantize(colours)
    if mode == "I;16":
        wide = smooth(random, *size, 2).astype(np.uint16)
        return Image.fromarray(wide[..., 0] << 8 | wide[..., 1])
    pixels = smooth(random, *size, len(Image.new(mode, (1, 1)).getbands()))
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels, mode)


def _pick(random: Random, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


# --- JPEG -----------------------------------------------------------------------------------------------------------

SAMPLINGS = [
    ((1, 1), (1, 1), (1, 1)),
    ((2, 2), (1, 1), (1, 1)),
    ((2, 1), (1, 1), (1, 1)),
    ((1, 2), (1, 1), (1, 1)),
    ((4, 1), (1, 1), (1, 1)),
    ((4, 2), (1, 1), (1, 1)),
    ((2, 2), (2, 1), (1, 2)),
    ((2, 2), (1, 2), (1, 2)),
    ((2, 1), (2, 1), (2, 1)),
    ((3, 1), (1, 1), (1, 1)),
    ((1, 3), (1, 1), (1, 1)),
    ((1, 1), (2, 1), (1, 1)),
    ((1, 1), (1, 2), (2, 1)),
    ((2, 1), (1, 1), (2, 1)),
]
SCANS = [
    [(0, 1, 2)],
    [(0,), (1,), (2,)],
    [(2,), (1,), (0,)],
    [(0,), (1, 2)],
    [(0, 1), (2,)],
    [(0, 2), (1,)],
    [(1, 2), (0,)],
]


def jpeg_by_pillow(random: Random, size: tuple[int, int]) -> Encoding:
    mode = _pick(random, ["L", "RGB", "RGB", "RGB", "CMYK"])
    settings: dict[str, Any] = {
        "quality": int(random.integers(70, 100)),
        "subsampling": _pick(random, [0, 1, 2]),
        "progressive": bool(random.integers(2)),
        "optimize": bool(random.integers(2)),
        _pick(random, ["restart_marker_blocks", "restart_marker_rows"]): int(_pick(random, [0, 0, 1, 2, 5])),
        "keep_rgb": mode == "RGB" and random.random() < 0.2,
    }
    if settings["keep_rgb"]:
        settings["subsampling"] = 0
    return Encoding("jpeg", f"{mode} {settings}", saved(picture(random, size, mode), "JPEG", **settings), True)


def jpeg_by_hand(random: Random, size: tuple[int, int]) -> Encoding:
    count = _pick(random, [1, 3, 3, 3, 3, 3, 4])
    if count == 3:
        sampling, scans = _pick(random, SAMPLINGS), _pick(random, SCANS)
    else:
        black = _pick(random, [(1, 1), (2, 2)])
        sampling = [black] if count == 1 else [(2, 2), (1, 1), (1, 1), black]
        scans = [tuple(range(count))] if random.integers(2) else [(index,) for index in range(count)]
    layout = Layout(
        sampling=sampling,
        scans=scans,
        restart=_pick(random, [0, 0, 0, 1, 2, 5, 40]),
        is_progressive=random.random() < 0.3,
        ids=_pick(random, [(1, 2, 3, 4), (1, 2, 3, 4), (0, 1, 2, 3), b"RGBA", b"CMYK", (1, 34, 35, 36), b"rgba"])[
            :count
        ],
        is_jfif=bool(random.integers(2)),
        adobe=_pick(random, [None, None, 0, 1, 2]),
    )
    planes = smooth(random, *size, count).astype(np.float64)
    return Encoding("jpeg", str(layout), write_jpeg([planes[..., index] for index in range(count)], layout), True)


# --- PNG ------------------------------------------------------------------------------------------------------------

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _packed(samples: npt.NDArray[np.int64], depth: int) -> list[bytes]:
    """Rows of samples as bytes, the first sample in the highest bits."""
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(row.ravel()).tobytes() for row in bits.astype(np.uint8)]


def _filtered(rows: list[bytes], random: Random, step: int) -> bytes:
    """The rows behind a filter of each kind."""
    out, above = [], bytes(len(rows[0]) if rows else 0)
    for row in rows:
        kind = int(random.integers(4))  # all but Paeth's, which Pillow writes
        left = bytes(step) + row[: len(row) - step]
        predicted = [
            bytes(len(row)),
            left[: len(row)],
            above,
            bytes((a + b) // 2 for a, b in zip(left, above, strict=False)),
        ][kind]
        out.append(bytes([kind]) + bytes((value - guess) % 256 for value, guess in zip(row, predicted, strict=True)))
        above = row
    return b"".join(out)


def png_by_hand(random: Random, size: tuple[int, int]) -> Encoding:
    kind = _pick(random, [0, 2, 3, 4, 6])
    depth = _pick(random, DEPTHS[kind])
    interlaced = int(random.integers(2))
    width, height = size
    samples = smooth(random, width, height, CHANNELS[kind]).astype(np.int64)
    samples = samples * 257 + random.integers(-100, 100, samples.shape) if depth == 16 else samples >> (8 - depth)
    samples = samples.clip(0, 2**depth - 1)
    chunks = []
    step = max(1, CHANNELS[kind] * depth // 8)
    if random.random() < 0.3:
        chunks.append(_chunk(b"gAMA", struct.pack(">I", _pick(random, [45455, 100000, 55556]))))
    if random.random() < 0.3:
        chunks.append(_chunk(b"sRGB", b"\0"))
    if random.random() < 0.2:
        chunks.append(_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)))
    if kind == 3:
        palette = smooth(random, 16, 16).reshape(256, 3)[: 2**depth]
        chunks.append(_chunk(b"PLTE", palette.tobytes()))
        colours = palette[samples[..., 0]].astype(np.float64)
    else:
        colours = (samples * (255 / (2**depth - 1)))[..., : 1 if kind in (0, 4) else 3]
    opacity = samples[..., -1:] / (2**depth - 1) if kind in (4, 6) else np.ones((height, width, 1))
    transparent = random.random() < 0.4 and kind in (0, 2, 3)
    if transparent and kind == 3:
        opacities = random.integers(0, 256, int(random.integers(1, 2**depth + 1)), dtype=np.uint8)
        chunks.append(_chunk(b"tRNS", opacities.tobytes()))
        opacity = np.concatenate([opacities / 255, np.ones(256)])[samples]
    elif transparent:
        colour = samples[height // 2, width // 2]
        chunks.append(_chunk(b"tRNS", colour.astype(">u2").tobytes()))
        opacity = (samples != colour).any(-1, keepdims=True)
    # Pillow looks for a transparent colour of other than 8 bits among those of 8, and cuts 16 bits off.
    expected = np.rint(colours * opacity + 255 * (1 - opacity)).repeat(3 // colours.shape[2], 2).astype(np.uint8)
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in PASSES] if interlaced else [samples]
    rows = [_packed(part.reshape(part.shape[0], -1), depth) for part in passes if part.size]
    data = zlib.compress(b"".join(_filtered(part, random, step) for part in rows))
    cuts = sorted(random.integers(0, len(data) + 1, int(random.integers(0, 4))).tolist())
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    ended = random.random() < 0.8
    settings = f"kind {kind} depth {depth} interlaced {interlaced} transparent {transparent} ended {ended}"
    parts = [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)),
        *chunks,
        *(_chunk(b"IDAT", piece) for piece in pieces),
        _chunk(b"IEND", b"") if ended else b"",
    ]
    return Encoding("png", settings, b"".join(parts), expected=expected)


def png_by_pillow(random: Random, size: tuple[int, int]) -> Encoding:
    mode = _pick(random, ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
    image = picture(random, size, mode)
    settings: dict[str, Any] = {"compress_level": int(random.integers(0, 10)), "optimize": bool(random.integers(2))}
    if mode == "P":
        settings["bits"] = _pick(random, [8, 8, 4]) if max(np.asarray(image).ravel()) < 16 else 8
        if random.integers(2):
            settings["transparency"] = _pick(random, [0, bytes([0, 100, 255]), 1])
    return Encoding("png", f"{mode} {settings}", saved(image, "PNG", **settings))


# --- the others -----------------------------------------------------------------------------------------------------


def webp(random: Random, size: tuple[int, int]) -> Encoding:
    mode = _pick(random, ["RGB", "RGBA", "L", "P"])
    image = picture(random, size, mode)
    settings: dict[str, Any] = {
        "lossless": bool(random.integers(2)),
        "quality": int(random.integers(40, 101)),
        "method": int(random.integers(0, 7)),
        "exact": bool(random.integers(2)),
        "alpha_quality": int(random.integers(20, 101)),
    }
    if random.random() < 0.3:
        settings |= {"save_all": True, "append_images": [picture(random, size, mode)], "duration": 100}
    encoded = saved(image, "WEBP", **settings)
    settings.pop("append_images", None)
    return Encoding("webp", f"{mode} {settings}", encoded, not settings["lossless"])


def gif(random: Random, size: tuple[int, int]) -> Encoding:
    """The first frame may cover a part of the canvas, which is transparent elsewhere."""
    left, top = random.integers(0, 6, 2).tolist() if random.random() < 0.3 else (0, 0)
    covered = size[0] - left, size[1] - top
    image = picture(random, covered, _pick(random, ["P", "L", "RGB"]))
    image = image if image.mode == "P" else image.quantize(int(random.integers(2, 257)))
    settings: dict[str, Any] = {"interlace": int(random.integers(2)), "optimize": bool(random.integers(2))}
    if random.integers(2):
        settings["transparency"] = int(random.integers(0, np.asarray(image).max() + 1))
    if random.random() < 0.3:
        settings |= {"save_all": True, "disposal": int(random.integers(0, 4))}
        settings["append_images"] = [picture(random, covered, "P")]
    encoded = saved(image, "GIF", **settings)
    expected = np.full((size[1], size[0], 3), 255, np.uint8)
    expected[top:, left:] = by_pillow(encoded)
    encoded = bytearray(encoded)
    frame = encoded.index(b"\x2c\0\0\0\0" + struct.pack("<2H", *covered))
    encoded[6:10], encoded[frame + 1 : frame + 5] = struct.pack("<2H", *size), struct.pack("<2H", left, top)
    settings.pop("append_images", None)
    return Encoding("gif", f"{settings} at {left, top}", bytes(encoded), expected=expected)


def _run_lengths(rows: npt.NDArray[np.int64], depth: int, random: Random) -> bytes:
    """Rows, the lowest first, as runs of equal samples and as samples that follow in full."""
    out = b""
    for row in rows[::-1].tolist():
        at = 0
        while at < len(row):
            length = int(random.integers(3, 9))
            part = row[at : at + length]
            if len(set(part)) == 1 or len(part) < 3:
                part = [value for value in part if value == part[0]]
                out += bytes([len(part), part[0] if depth == 8 else part[0] << 4 | part[0]])
            else:
                data = (
                    bytes(part)
                    if depth == 8
                    else bytes(a << 4 | b for a, b in zip(part[::2], [*part[1::2], 0], strict=False))
                )
                out += bytes([0, len(part)]) + data + bytes(len(data) % 2)
            at += len(part)
        out += b"\0\0"
    return out + b"\0\1"


def bmp(random: Random, size: tuple[int, int]) -> Encoding:
    width, height = size
    depth = _pick(random, [1, 4, 8, 16, 24, 32])
    header_size = _pick(random, [12, 40, 40, 40, 108, 124]) if depth in (1, 4, 8, 24) else _pick(random, [40, 108, 124])
    top_down = header_size > 12 and random.random() < 0.4
    compression, masks, tables = 0, (), b""
    if depth <= 8:
        samples = smooth(random, width, height, 1).astype(np.int64)[..., 0] >> (8 - depth)
        palette = smooth(random, 16, 16).reshape(256, 3)[: 2**depth]
        tables = b"".join(bytes(colour) + (b"" if header_size == 12 else b"\0") for colour in palette)
        if depth in (4, 8) and header_size > 12 and random.integers(2):
            compression, top_down = 1 if depth == 8 else 2, False
    elif depth == 24:
        samples = smooth(random, width, height, 3).astype(np.int64).reshape(height, -1)
    else:
        samples = smooth(random, width, height, depth // 8).astype(np.int64)
        choices = (
            [(0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F)]
            if depth == 16
            else [(0xFF0000, 0xFF00, 0xFF), (0xFF, 0xFF00, 0xFF0000)]
        )
        if random.integers(2) or header_size > 40:
            compression, masks = 3, _pick(random, choices)
        samples = samples.reshape(height, -1)
    if compression in (1, 2):
        data = _run_lengths(samples, depth, random)
    else:
        rows = _packed(samples, depth if depth <= 8 else 8)
        rows = [row + bytes(-len(row) % 4) for row in rows]
        data = b"".join(rows if top_down else rows[::-1])
    alpha = 0xFF000000 if depth == 32 and header_size > 40 and random.integers(2) else 0
    if header_size == 12:
        header = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        colours = len(tables) // 4
        header = struct.pack(
            "<IiiHHIIiiII",
            header_size,
            width,
            -height if top_down else height,
            1,
            depth,
            compression,
            len(data),
            2835,
            2835,
            colours,
            0,
        )
        fields = struct.pack("<3I", *masks) if masks else b""
        header += (
            fields
            if header_size == 40
            else (fields.ljust(12, b"\0") + struct.pack("<I", alpha) + b"BGRs").ljust(header_size - 40, b"\0")
        )
    offset = 14 + len(header) + len(tables)
    encoded = struct.pack("<2sIII", b"BM", offset + len(data), 0, offset) + header + tables + data
    settings = f"depth {depth} header {header_size} top_down {top_down} compression {compression} masks {masks}"
    return Encoding("bmp", settings, encoded)


def tiff(random: Random, size: tuple[int, int]) -> Encoding:
    mode = _pick(random, ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
    compressions = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"]
    compressions += ["group3", "group4"] if mode == "1" else []
    compressions += ["jpeg"] if mode in ("L", "RGB", "CMYK", "YCbCr") else []
    compression = _pick(random, compressions)
    settings: dict[str, Any] = {"compression": compression}
    tags: dict[int, int] = {}
    if (
        compression in ("tiff_lzw", "tiff_adobe_deflate")
        and mode in ("L", "RGB", "RGBA", "I;16")
        and random.integers(2)
    ):
        tags[317] = 2
    if random.integers(2):
        tags[278] = int(random.integers(1, size[1] + 1)) if compression != "jpeg" else 16
    encoded = saved(picture(random, size, mode), "TIFF", tiffinfo=tags, **settings)
    unknown = mode in ("LA", "LAB", "P", "YCbCr") or compression == "group3"
    return Encoding("tiff", f"{mode} {settings} {tags}", encoded, compression == "jpeg", may_be_refused=unknown)


MAKERS: tuple[Callable[[Random, tuple[int, int]], Encoding], ...] = (
    jpeg_by_pillow,
    jpeg_by_hand,
    jpeg_by_hand,
    png_by_pillow,
    png_by_hand,
    png_by_hand,
    webp,
    gif,
    bmp,
    tiff,
)


def encodings(random: Random, size: tuple[int, int], each: int) -> list[Encoding]:
    """`each` pictures of every maker."""
    return [make(random, size) for make in MAKERS for _ in range(each)]


def by_pillow(encoded: bytes) -> Pixels:
    """How Pillow draws it: 16 bits scaled, over white where it is transparent."""
    image = Image.open(io.BytesIO(encoded))
    image.load()
    if image.mode.startswith("I"):
        wide = np.asarray(image, dtype=np.int64)
        transparent = image.info.get("transparency")
        grey = ((wide + 128) // 257).astype(np.uint8)
        if transparent is not None:
            grey[wide == transparent] = 255
        image = Image.fromarray(grey)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
