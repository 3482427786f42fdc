"""What ragged captions take on disk: the store's text arrays beside the bare bytes of their tokens.

Tokens of width 2304 in float16, as SANA has them, through the code that packs and writes a part; everything counts
that a reader needs (tokens, their shard's index, offsets, lengths, metadata), in blocks of the file system. The peers
are one file of the bare bytes, and the padded array that `encode_prompt` returns.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from _environment import machine, write_result

from ddx._core import BatchReader, StoreWriter
from ddx.data.config import PrecomputeConfig
from ddx.data.encode import Text, pack
from ddx.data.layout import Sizes, array_specs
from ddx.data.part_writer import raw

WIDTH, MAX_TOKENS = 2304, 300
LATENT_SHAPE = (32, 16, 16)
ROWS = 4000
LENGTHS = {"10 to 20 tokens": (10, 20), "75 tokens": (75, 75)}


def main() -> None:
    """Measure and write the result."""
    environment, result = machine(), {}
    for name, (least, most) in LENGTHS.items():
        random = np.random.default_rng(0)
        lengths = random.integers(least, most, ROWS, endpoint=True)
        with tempfile.TemporaryDirectory() as folder:
            store, flat = Path(folder) / "store.zarr", Path(folder) / "tokens"
            write_store(store, flat, lengths, random)
            check(store, flat, lengths)
            stored, bare = size(store / "text"), size(flat)
        result[name] = {
            "captions": ROWS,
            "stored bytes": stored,
            "bare bytes": bare,
            "stored over bare": round(stored / bare, 4),
            "padded over bare": round(ROWS * MAX_TOKENS * WIDTH * 2 / bare, 2),
        }
        print(name, result[name])
    print(f"wrote {write_result('text_store', result, environment)}")


def write_store(store: Path, flat: Path, lengths: np.ndarray, random: np.random.Generator) -> None:
    """Write captions of these lengths into a store of the usual parts, and their tokens alone into one file."""
    sizes = Sizes(len(lengths), PrecomputeConfig().part_rows, LATENT_SHAPE, WIDTH, MAX_TOKENS)
    writer = StoreWriter.create(store, json.dumps(array_specs(sizes)), "{}", "", {})
    with flat.open("wb") as file:
        for part in range(sizes.num_parts):
            rows = sizes.part_range(part)
            texts = [random.standard_normal((lengths[row], WIDTH), np.float32).astype(np.float16) for row in rows]
            for tokens in texts:
                file.write(tokens.tobytes())
            captions = pack([Text(tokens, None) for tokens in texts])
            offset, length = np.full(sizes.part_rows, -1, np.int64), np.zeros(sizes.part_rows, np.int32)
            offset[: len(rows)] = captions.offset + part * sizes.part_tokens
            length[: len(rows)] = captions.length
            latents = np.zeros((len(rows), *LATENT_SHAPE), np.float16)
            arrays: dict[str, Any] = {"latents": latents, "text/tokens": captions.tokens}
            arrays |= {"text/offset": offset, "text/length": length}
            writer.write_part(
                part=part,
                first_row=rows.start,
                rows=len(rows),
                ok=len(rows),
                failed={},
                shards={name: (None, raw(array)) for name, array in arrays.items()},
                files={},
            )


def check(store: Path, flat: Path, lengths: np.ndarray) -> None:
    """Both hold the same tokens."""
    bare = np.fromfile(flat, np.uint16).reshape(-1, WIDTH)
    start = np.cumsum(lengths) - lengths
    batch = next(BatchReader(store, batch_size=64, seed=0, threads=1))
    arrays = (np.asarray(batch[name]) for name in ("rows", "tokens", "lengths"))
    for row, tokens, length in zip(*arrays, strict=True):
        assert length == lengths[row]
        assert np.array_equal(tokens[:length].view(np.uint16), bare[start[row] : start[row] + length])


def size(path: Path) -> int:
    """Bytes on disk, of a file or of all in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


if __name__ == "__main__":
    main()
