"""What ragged captions take on disk: the store's text arrays beside the bare bytes of their tokens.

Tokens of width 2304 in float16, as SANA has them, through the code that packs and writes a part; everything counts
that a reader needs (tokens, their shard's index, offsets, lengths, metadata), in blocks of the file system. The peers
are one file of the bare float16 bytes, and the padded array that `encode_prompt` returns. The tokens are random, with
channels of very different size, as language models have them: that is what eight bits lose most on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _environment import machine, write_result

from ddx._core import BatchReader, StoreWriter
from ddx.data.buckets import Bucket
from ddx.data.config import PrecomputeConfig
from ddx.data.float8 import from_float8
from ddx.data.layout import Sizes, array_specs
from ddx.data.precompute.encode import Text, in_float8, pack
from ddx.data.precompute.part_writer import raw

WIDTH, MAX_TOKENS = 2304, 300
SQUARE = Bucket(512, 512, (32, 16, 16))
ROWS = 4000
LENGTHS = {"10 to 20 tokens": (10, 20), "75 tokens": (75, 75)}


def main() -> None:
    """Measure and write the result."""
    environment, result = machine(), {}
    for name, (least, most) in LENGTHS.items():
        lengths = np.random.default_rng(0).integers(least, most, ROWS, endpoint=True)
        with tempfile.TemporaryDirectory() as folder:
            flat = Path(folder) / "tokens"
            stored, errors = {}, {}
            for float8 in (False, True):
                store = Path(folder) / f"{float8}.zarr"
                write_store(store, flat, lengths, float8=float8)
                errors[float8] = read_errors(store, flat, lengths)
                stored[float8] = size(store / "text")
            bare = size(flat)
        assert errors[False].max() < 1e-7, "float16 comes back as it was"
        result[name] = {
            "captions": ROWS,
            "bare bytes": bare,
            "stored bytes": stored[False],
            "stored over bare": round(stored[False] / bare, 4),
            "float8 bytes": stored[True],
            "float8 over bare": round(stored[True] / bare, 4),
            "float8 cosine error": {"mean": float(errors[True].mean()), "largest": float(errors[True].max())},
            "padded over bare": round(ROWS * MAX_TOKENS * WIDTH * 2 / bare, 2),
        }
        print(name, result[name])
    print(f"wrote {write_result('text_store', result, environment)}")


def write_store(store: Path, flat: Path, lengths: np.ndarray, *, float8: bool) -> None:
    """Write captions of these lengths into a store of the usual parts, and their tokens alone into one file."""
    random = np.random.default_rng(0)
    channels = np.exp(random.standard_normal(WIDTH, np.float32))
    sizes = Sizes(len(lengths), PrecomputeConfig().part_rows, (SQUARE,), WIDTH, MAX_TOKENS, float8=float8)
    writer = StoreWriter.create(store, json.dumps(array_specs(sizes)), "{}", "", {})
    with flat.open("wb") as file:
        for part in range(sizes.num_parts):
            rows = sizes.part_range(part)
            values = [random.standard_normal((lengths[row], WIDTH), np.float32) * channels for row in rows]
            texts = [Text(tokens.astype(np.float16), None) for tokens in values]
            for text in texts:
                file.write(text.tokens.tobytes())
            captions = pack([in_float8(text) if float8 else text for text in texts])
            offset, length = np.full(sizes.part_rows, -1, np.int64), np.zeros(sizes.part_rows, np.int32)
            offset[: len(rows)] = captions.offset + part * sizes.part_tokens
            length[: len(rows)] = captions.length
            latents = np.zeros((len(rows), *SQUARE.latent_shape), np.float16)
            arrays: dict[str, Any] = {"latents": latents, "text/tokens": captions.tokens}
            arrays |= {"text/offset": offset, "text/length": length}
            if float8:
                arrays["text/scale"] = np.zeros(sizes.part_rows, np.float32)
                arrays["text/scale"][: len(rows)] = captions.scale
            writer.write_part(
                part=part,
                first_row=rows.start,
                rows=len(rows),
                ok=len(rows),
                failed={},
                shards={name: (None, raw(array)) for name, array in arrays.items()},
                files={},
            )


def read_errors(store: Path, flat: Path, lengths: np.ndarray) -> np.ndarray:
    """Read a batch, and give one minus the cosine of each of its tokens to the bare one."""
    bare = np.fromfile(flat, np.float16).reshape(-1, WIDTH)
    start = np.cumsum(lengths) - lengths
    batch = next(BatchReader(store, batch_size=256, seed=0, threads=1))
    rows, tokens, counts = (np.asarray(batch[name]) for name in ("rows", "tokens", "lengths"))
    if "scales" in batch:
        codes, scales = torch.from_numpy(tokens), torch.from_numpy(np.asarray(batch["scales"]))
        tokens = from_float8(codes, scales).numpy()
    errors = []
    for row, padded, count in zip(rows.tolist(), tokens, counts, strict=True):
        assert count == lengths[row]
        stored, true = padded[:count].astype(np.float64), bare[start[row] : start[row] + count].astype(np.float64)
        norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(true, axis=1)
        errors.append(1 - (stored * true).sum(1) / norms)
    return np.concatenate(errors)


def size(path: Path) -> int:
    """Bytes on disk, of a file or of all in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


if __name__ == "__main__":
    main()
