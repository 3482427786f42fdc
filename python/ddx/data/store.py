"""A store as the other stages see it: what it holds, for which teacher, and its conditions. Plain Zarr underneath."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx.data.buckets import Bucket, read_buckets
from ddx.data.layout import overhead
from ddx.data.rows import FILE_NAME, tables
from ddx.data.segments import Segment, read_attributes, record_path, segments_of
from ddx.data.synthetic import noise_of, synthetic_of
from ddx.errors import DdxError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from ddx.progress import Progress
    from ddx.teachers.condition import Condition

# Small arrays are read in slices of about so many rows.
ROWS_AT_ONCE = 1 << 20


# What `ddx precompute` reads, by the end of its name.
TABLES_AND_LISTS = (".parquet", ".tar", ".csv", ".tsv", ".jsonl", ".ndjson", ".ffr", ".txt", ".zip")


def _no_store(path: Path) -> UsageError:
    """Return the error for a path without a store; a source of pictures is to be precomputed first."""
    if path.is_file() or path.name.lower().endswith(TABLES_AND_LISTS):
        return UsageError(f"{path} is not a store", hint=f"precompute it first: `ddx precompute {path} --teacher NAME`")
    if path.is_dir():
        return UsageError(
            f"{path} is a folder and not a store: it has no zarr.json",
            hint=f"if it holds pictures, precompute them first: `ddx precompute {path} --teacher NAME`",
        )
    return UsageError(f"there is no store at {path}", hint="`ddx list stores` shows those of the workspace")


class Store:
    """An opened store. Raises UsageError when there is none at `path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        attributes = read_attributes(self.path)
        if attributes is None:
            raise _no_store(self.path)
        self.attributes = attributes

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    @property
    def rows(self) -> int:
        """Input rows, failed ones included."""
        return int(self.attributes["rows"])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the teacher that it was made with."""
        return dict(self.attributes["fingerprint"])

    @property
    def teacher(self) -> str:
        """The teacher's name."""
        return str(self.attributes["teacher"])

    @property
    def resolution(self) -> int:
        """Pixels a side of the pictures."""
        return int(self.attributes["resolution"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents."""
        channels, height, width = self.attributes["latent_shape"]
        return channels, height, width

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The sizes of its pictures; one, the square, without aspect buckets."""
        return read_buckets(self.attributes)

    @property
    def segments(self) -> list[Segment]:
        """What was added at a time, in order: parts, rows, sources and settings of each."""
        return segments_of(self.attributes)

    @property
    def sources(self) -> list[str]:
        """What it was made from, as the command lines had it."""
        return [source for segment in self.segments for source in segment.sources]

    @property
    def synthetic_share(self) -> float:
        """The share of its usable rows whose pictures the teacher drew."""
        drawn = [segment for segment in self.segments if synthetic_of(segment.settings) is not None]
        if not drawn:
            return 0.0
        ok = {int(record["part"]): int(record["ok"]) for record in self.commits()}
        return sum(ok.get(part, 0) for segment in drawn for part in segment.parts) / max(1, sum(ok.values()))

    def noise(self, rows: Tensor) -> Tensor:
        """Return the unit noise, float32 `[B, C, h, w]`, that the teacher drew these rows from, int64 `[B]`.

        ValueError for a row that it did not draw.
        """
        import torch

        segments, part_rows = self.segments, int(self.attributes["part_rows"])
        return torch.stack([noise_of(segments, part_rows, row, self.latent_shape) for row in rows.tolist()])

    @property
    def is_complete(self) -> bool:
        """Whether every part is there; rows.parquet is written after the last."""
        return (self.path / FILE_NAME).is_file()

    @property
    def num_ok(self) -> int:
        """Rows that have latents and text."""
        return tally(self.commits())[0]

    @property
    def num_parts(self) -> int:
        """Parts, done or not."""
        return int(self.attributes["num_parts"])

    def done_parts(self) -> Iterator[int]:
        """The parts that are done, in order."""
        return (part for part in range(self.num_parts) if record_path(self.path, part).is_file())

    def commits(self) -> Iterator[dict[str, Any]]:
        """The records of the parts that are done, in order."""
        return (json.loads(record_path(self.path, part).read_text()) for part in self.done_parts())

    def require_complete(self) -> None:
        """Raise DdxError when parts are missing."""
        if not self.is_complete:
            done = sum(1 for _ in self.done_parts())
            if done == self.num_parts and not self.num_ok:
                raise DdxError(f"{self.path} has no row that could be used", hint=f"ddx inspect {self.path}")
            raise DdxError(
                f"{self.path} is not complete: {done} of {self.num_parts} parts are done",
                hint="run the same `ddx precompute` command again; it goes on where it stopped",
            )

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A whole array, such as "text/length", through zarr-python."""
        import zarr

        return np.asarray(zarr.open_array(str(self.path), path=name, mode="r")[...])

    @property
    def text_scale(self) -> float:
        """What its tokens were divided by, so that float16 holds them: a power of two, 1 of most teachers."""
        return float(self.attributes.get("text_scale", 1.0))

    def null_condition(self) -> Condition:
        """The condition of the empty negative prompt, one row; float16, or float32 where that is too small."""
        pooled = self.array("text/null_pooled") if self.attributes.get("pooled_width") else None
        return self._condition(self.array("text/null"), pooled)

    def validation(self) -> tuple[list[str], list[Condition]]:
        """The validation prompts and their conditions, one row each, as :meth:`null_condition`."""
        prompts = [str(prompt) for prompt in self.attributes["validation_prompts"]]
        if not prompts:
            return [], []
        tokens, offset, length = (self.array(f"text/validation/{name}") for name in ("tokens", "offset", "length"))
        has_pooled = bool(self.attributes.get("pooled_width"))
        pooled = self.array("text/validation/pooled") if has_pooled else None
        conditions = []
        for index, start in enumerate(offset.tolist()):
            row = None if pooled is None else pooled[index : index + 1]
            conditions.append(self._condition(tokens[start : start + int(length[index])], row))
        return prompts, conditions

    def _condition(self, tokens: np.ndarray[Any, Any], pooled: np.ndarray[Any, Any] | None) -> Condition:
        import torch

        from ddx.teachers.condition import Condition

        values = torch.from_numpy(np.array(tokens))[None]
        return Condition(
            values if self.text_scale == 1.0 else self.text_scale * values.float(),
            torch.ones(1, len(tokens), dtype=torch.bool),
            None if pooled is None else torch.from_numpy(np.array(pooled)),
        )

    def rows_table(self) -> pa.Table:
        """One row per input row: key, caption, status, sizes, crop, hash."""
        import pyarrow.parquet as pq

        self.require_complete()
        return pq.read_table(self.path / FILE_NAME)

    def row_tables(self, columns: Sequence[str], progress: Progress) -> Iterator[pa.Table]:
        """These columns of rows.parquet for the parts that are done, a bounded number of rows at a time."""
        progress.start("read rows", self.rows, "rows")
        try:
            for table in tables(self.path, self.done_parts(), columns):
                yield table
                progress.advance(len(table))
        finally:
            progress.finish()

    def bucket_counts(self) -> dict[str, int]:
        """How many pictures each aspect bucket has, in parts that are done; nothing without buckets."""
        buckets = self.buckets
        if len(buckets) == 1:
            return {}
        counts = np.zeros(len(buckets), np.int64)
        for numbers in self._of_done_parts("bucket"):
            counts += np.bincount(numbers[numbers >= 0], minlength=len(buckets))
        return {str(bucket.name): int(count) for bucket, count in zip(buckets, counts, strict=True)}

    def token_counts(self) -> np.ndarray[Any, Any]:
        """How many captions of rows that are fine have n tokens: int64 `[max_tokens + 1]`, in parts that are done."""
        longest = int(self.attributes["max_tokens"])
        counts = np.zeros(longest + 1, np.int64)
        for lengths in self._of_done_parts("text/length"):
            counts += np.bincount(lengths.ravel(), minlength=longest + 1)
        counts[0] = 0  # failed rows, and captions that are not there
        return counts

    def _of_done_parts(self, name: str) -> Iterator[np.ndarray[Any, Any]]:
        """The rows of a small array that are in parts which are done, a bounded number at a time."""
        import zarr

        done = np.zeros(self.num_parts, bool)
        done[list(self.done_parts())] = True
        array = zarr.open_array(str(self.path), path=name, mode="r")
        part_rows = int(self.attributes["part_rows"])
        step = max(1, ROWS_AT_ONCE // part_rows)
        for first in range(0, self.num_parts, step):
            values = np.asarray(array[first * part_rows : min(first + step, self.num_parts) * part_rows])
            yield values[np.repeat(done[first : first + step], part_rows)[: len(values)]]

    def summary(self) -> dict[str, Any]:
        """What `ddx inspect` shows: rows by status, completeness, teacher, sizes on disk."""
        arrays = ("latents", "latents_flip", "logvar", "logvar_flip", "text/tokens", "text/pooled", "other")
        done, size = 0, dict.fromkeys(arrays, 0)

        def sized() -> Iterator[dict[str, Any]]:
            nonlocal done
            for record in self.commits():
                done += 1
                for file, num_bytes in record["files"].items():
                    array = file.rpartition("/")[0]
                    array = array.rpartition("/")[2] if array.startswith("buckets/") else array
                    size[array if array in size else "other"] += num_bytes
                yield record

        ok, failed = tally(sized())  # one look at each of what may be very many records
        tokens = self.token_counts()
        return {
            "path": str(self.path),
            "rows": self.rows,
            "ok": ok,
            "failed": failed,
            "complete": self.is_complete,
            "parts": {"done": done, "total": self.num_parts},
            "teacher": self.teacher,
            "resolution": self.resolution,
            "latent_shape": list(self.latent_shape),
            **({"buckets": counts} if (counts := self.bucket_counts()) else {}),
            "mean_tokens": round(float(tokens @ np.arange(len(tokens)) / tokens.sum()), 2) if ok else None,
            "token_overhead": round(value, 4) if (value := overhead(tokens)) else None,
            **({"text_error": error} if (error := self.attributes.get("text_error")) else {}),
            "bytes": {name: num for name, num in size.items() if num},
            "validation_prompts": len(self.attributes["validation_prompts"]),
            "fingerprint": self.fingerprint,
            "sources": self.sources,
            **({"synthetic_share": round(share, 4)} if (share := self.synthetic_share) else {}),
            "settings": self.attributes["settings"],
            "segments": [
                {
                    "first_row": segment.first_part * int(self.attributes["part_rows"]),
                    "rows": segment.rows,
                    "sources": segment.sources,
                    "settings": segment.settings,
                }
                for segment in self.segments
            ],
        }


def tally(records: Iterable[Mapping[str, Any]]) -> tuple[int, dict[str, int]]:
    """Rows that are fine, and failed ones by reason, over commit records."""
    ok, failed = 0, Counter[str]()
    for record in records:
        ok += int(record["ok"])
        failed.update(record["failed"])
    return ok, dict(sorted(failed.items()))
