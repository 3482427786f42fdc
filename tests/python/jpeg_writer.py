"""JPEGs of every layout that the format allows, which the usual encoders never write."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float64]

ZIGZAG = sorted(range(64), key=lambda at: (at // 8 + at % 8, (at // 8 if (at // 8 + at % 8) % 2 else at % 8)))
# Every code has eight bits, or four for DC, so that a code is the index of its symbol.
DC_SYMBOLS = list(range(12))
AC_SYMBOLS = [0x00, 0xF0] + [run << 4 | size for run in range(16) for size in range(1, 11)]
AC_CODES = {symbol: code for code, symbol in enumerate(AC_SYMBOLS)}
_COSINES = np.array(
    [[np.cos((2 * x + 1) * u * np.pi / 16) / (8**0.5 if u == 0 else 2) for x in range(8)] for u in range(8)]
)


@dataclass(frozen=True)
class Layout:
    """How the samples are stored."""

    sampling: Sequence[tuple[int, int]] = ((2, 2), (1, 1), (1, 1))
    """For each component the samples across and down, relative to those of the others."""
    scans: Sequence[Sequence[int]] = ((0, 1, 2),)
    """The components of each scan."""
    restart: int = 0
    """Blocks (or groups of them) between two restart markers; 0 is none."""
    is_progressive: bool = False
    """Each scan gives the first coefficients; after them come two scans of the others for each component."""
    ids: Sequence[int] = (1, 2, 3)
    """What the components are called."""
    is_jfif: bool = True
    adobe: int | None = None
    """The transform that an Adobe segment names."""
    step: int = 4
    """Of the quantisation."""


class _Bits:
    def __init__(self) -> None:
        self.text: list[str] = []

    def put(self, value: int, length: int) -> None:
        if length:
            self.text.append(format(value, f"0{length}b"))

    def number(self, value: int) -> None:
        size = abs(value).bit_length()
        self.put(value if value >= 0 else value + (1 << size) - 1, size)

    def take(self) -> bytes:
        text = "".join(self.text)
        self.text = []
        text += "1" * (-len(text) % 8)
        packed = int(text, 2).to_bytes(len(text) // 8, "big") if text else b""
        return packed.replace(b"\xff", b"\xff\x00")


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _put_block(bits: _Bits, block: list[int], predicted: int, first: int, last: int) -> None:
    if first == 0:
        difference = block[0] - predicted
        bits.put(abs(difference).bit_length(), 4)
        bits.number(difference)
    run = 0
    for value in block[max(first, 1) : last + 1]:
        if value == 0:
            run += 1
            continue
        while run > 15:
            bits.put(AC_CODES[0xF0], 8)
            run -= 16
        bits.put(AC_CODES[run << 4 | abs(value).bit_length()], 8)
        bits.number(value)
        run = 0
    if run and last:
        bits.put(AC_CODES[0x00], 8)


def write_jpeg(planes: Sequence[Plane], layout: Layout) -> bytes:
    """Encode components of equal size, 0 to 255 each, which are averaged down to the wanted sampling."""
    height, width = planes[0].shape
    most_across, most_down = (max(factor[axis] for factor in layout.sampling) for axis in (0, 1))
    groups_across, groups_down = ceil(width / (8 * most_across)), ceil(height / (8 * most_down))
    blocks: list[npt.NDArray[np.int64]] = []
    for plane, (across, down) in zip(planes, layout.sampling, strict=True):
        # The picture is repeated at its edges to whole groups, then averaged to the component's own grid.
        whole = np.pad(
            plane, ((0, groups_down * 8 * most_down - height), (0, groups_across * 8 * most_across - width)), "edge"
        )
        fine = whole.repeat(down, 0).repeat(across, 1)
        rows, columns = groups_down * 8 * down, groups_across * 8 * across
        own = fine.reshape(rows, most_down, columns, most_across).mean((1, 3)) - 128
        tiles = own.reshape(rows // 8, 8, columns // 8, 8).swapaxes(1, 2)
        quantised = np.rint(_COSINES @ tiles @ _COSINES.T / layout.step).astype(np.int64)
        blocks.append(quantised.reshape(rows // 8, columns // 8, 64)[..., ZIGZAG])

    def scan(components: Sequence[int], first: int, last: int) -> bytes:
        header = bytes([len(components)]) + b"".join(bytes([layout.ids[index], 0]) for index in components)
        out, bits = [_segment(0xDA, header + bytes([first, last, 0]))], _Bits()
        if len(components) > 1:
            group = [
                (index, y, x)
                for index in components
                for y in range(layout.sampling[index][1])
                for x in range(layout.sampling[index][0])
            ]
            places = [
                [
                    (index, row * layout.sampling[index][1] + y, column * layout.sampling[index][0] + x)
                    for index, y, x in group
                ]
                for row in range(groups_down)
                for column in range(groups_across)
            ]
        else:
            (index,) = components
            across, down = layout.sampling[index]
            columns = ceil(ceil(width * across / most_across) / 8)
            rows = ceil(ceil(height * down / most_down) / 8)
            places = [[(index, row, column)] for row in range(rows) for column in range(columns)]
        predicted = dict.fromkeys(components, 0)
        for number, place in enumerate(places):
            if layout.restart and number and number % layout.restart == 0:
                out += [bits.take(), bytes([0xFF, 0xD0 + (number // layout.restart - 1) % 8])]
                predicted = dict.fromkeys(components, 0)
            for index, row, column in place:
                block = blocks[index][row, column].tolist()
                _put_block(bits, block, predicted[index], first, last)
                predicted[index] = block[0]
        return b"".join([*out, bits.take()])

    if layout.is_progressive:
        scans = [scan(components, 0, 0) for components in layout.scans]
        scans += [scan([index], *part) for part in ((1, 9), (10, 63)) for index in reversed(range(len(planes)))]
    else:
        scans = [scan(components, 0, 63) for components in layout.scans]
    components = b"".join(
        bytes([name, across << 4 | down, 0]) for name, (across, down) in zip(layout.ids, layout.sampling, strict=True)
    )
    tables = [(0x00, 4, DC_SYMBOLS), (0x10, 8, AC_SYMBOLS)]
    segments = [
        _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") if layout.is_jfif else b"",
        b"" if layout.adobe is None else _segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([layout.adobe])),
        _segment(0xDB, bytes([0, *[layout.step] * 64])),
        _segment(
            0xC2 if layout.is_progressive else 0xC0, struct.pack(">BHHB", 8, height, width, len(planes)) + components
        ),
        *(
            _segment(0xC4, bytes([name, *(len(symbols) if length == bits else 0 for length in range(1, 17)), *symbols]))
            for name, bits, symbols in tables
        ),
        _segment(0xDD, struct.pack(">H", layout.restart)) if layout.restart else b"",
    ]
    return b"".join([b"\xff\xd8", *segments, *scans, b"\xff\xd9"])
