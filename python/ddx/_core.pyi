"""The compiled half of ddx. Private: `ddx.data` imports it, and nothing else does."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final

JPEG_DECODER: Literal["zune-jpeg", "libjpeg-turbo"]  # what the build decodes most JPEGs with

class CoreError(Exception):
    """An error of the compiled core; `args` is `(message, hint or None, whether the usage was wrong)`."""

    args: tuple[str, str | None, bool]

@final
class Buffer:
    """A C-contiguous array: `numpy.asarray(buffer)` is a writable view without a copy that keeps it alive."""

    @property
    def shape(self) -> list[int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

# --- ingest ---------------------------------------------------------------------------------------------------------

@final
class Input:
    """Rows with a caption and an image: parquet files, WebDataset tars, CSV, TSV and JSONL lists, folders of images.

    Each source is a file, a pattern (`*`, `{000..099}`) or a folder, on a disk or in an object store (`s3://…`, `gs://…`,
    `az://…`). Opening reads footers of parquet files, headers of tars and lists once; images are not touched. Columns
    that are not named are found by LAION's spellings and their relatives, in any case. `filter` is a condition on the
    columns, `unique` leaves out rows whose URL or path came before, `limit` takes the first rows that are left, or with
    a `shuffle` seed random ones, in the order of the input. `captions_only` looks for no image in tables and lists.
    Of a list of captions `max_captions` are kept. A caption's byte order mark decides how it is encoded, else it is
    UTF-8, else `caption_encoding` (of a name such as utf-16le before UTF-8). Stores are not entered, nor the folders
    `apart`, unless a source names a place in one.

    Raises CoreError for a missing file, an empty or broken one, a missing column (the message lists the columns, the
    hint names the flag), a filter that makes no sense, and when no row passes it.
    """

    def __new__(
        cls,
        sources: Sequence[str],
        *,
        url_column: str | None = None,
        image_column: str | None = None,
        path_column: str | None = None,
        caption_columns: Sequence[str] = (),
        key_column: str | None = None,
        max_captions: int | None = None,
        caption_encoding: str | None = None,
        captions_only: bool = False,
        apart: Sequence[str | Path] = (),
        filter: str | None = None,
        unique: bool = False,
        limit: int | None = None,
        shuffle: int | None = None,
    ) -> Input: ...
    @property
    def files(self) -> list[str]:
        """The files in order, by path or address; a folder of images is one of them."""
    @property
    def identities(self) -> list[str | None]:
        """For each file what its store says of its contents (size and ETag); None for one on a disk."""
    @property
    def listings(self) -> list[str | None]:
        """For each file that is a folder of images on a disk the names and sizes of all that lies in it."""
    @property
    def left_out(self) -> list[str]:
        """What lies in the folders that were named and is not read, counted by reason; a text a folder."""
    @property
    def overrides_utf8(self) -> bool:
        """Whether `caption_encoding` reads otherwise what is UTF-8 too."""
    @property
    def num_captions(self) -> int:
        """The captions that a row has places for."""
    @property
    def longest_list(self) -> int:
        """The longest list of captions, of which less may be kept; 1 where there are no lists."""
    @property
    def rows(self) -> int: ...
    def pick(self, rows: Sequence[int]) -> Input:
        """The input with these rows alone, whose numbers rise."""
    @property
    def columns(self) -> dict[str, str]:
        """The column of each role: `caption`, `image` where there are images, and `key` where there is one."""
    @property
    def image_kind(self) -> Literal["url", "bytes", "path", "caption"]: ...

@final
class Batch:
    """Pictures of one part and one size, in row order."""

    @property
    def part(self) -> int: ...
    @property
    def rows(self) -> list[int]:
        """The rows of the pictures, counted over the whole input; `count` of them."""
    @property
    def count(self) -> int: ...
    @property
    def images(self) -> Buffer:
        """uint8 `[batch_size, height, width, 3]` of one of the sizes, sRGB; zero from `count` on."""

@final
class PartEnd:
    """The records of one part, one entry a row; it comes after the part's last batch."""

    @property
    def part(self) -> int: ...
    @property
    def first_row(self) -> int: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def key(self) -> list[str]: ...
    @property
    def captions(self) -> list[list[str]]:
        """One a column, empty where it is blank; none at all of a row that could not be read."""
    @property
    def source(self) -> list[str]:
        """The image's URL or file; empty where it lay in the row itself."""
    @property
    def status(self) -> list[str]:
        """`ok`, or a reason.

        `no_caption`, `no_image`, `unreadable_source`; `missing_file`, `unreadable_file`; `bad_url`, `refused_address`,
        `dns`, `connect`, `timeout`, `reset`, `http_<code>`, `redirects`, `opted_out`; `too_large`, `empty`,
        `wrong_checksum`, `not_an_image`, `unsupported_format`, `too_many_pixels`, `too_small`, `decode`.
        """
    @property
    def detail(self) -> list[str]:
        """The reason in words; empty if ok."""
    @property
    def width(self) -> list[int]:
        """Of the upright source; 0 if unknown."""
    @property
    def height(self) -> list[int]: ...
    @property
    def crop(self) -> list[tuple[float, float, float, float]]:
        """Left, top, width and height in pixels of the upright source."""
    @property
    def hash(self) -> list[str]:
        """SHA-256 of the encoded bytes in hexadecimal; empty if there were none."""

@final
class Ingest(Iterator[Batch | PartEnd]):
    """Fetches, decodes, crops and batches the rows of the given parts, in the order given, on its own threads.

    A part is `part_rows` rows. A picture gets the one of `sizes` (width, height) whose aspect ratio is nearest to its
    own. `next()` releases the GIL and reacts to signals within 0.1 s. Memory is bounded by
    `prefetch_rows` (default: four batches and 64 rows; for URLs as many as 512 MiB of pictures, at most 4096),
    `byte_budget` and `pixel_budget`.
    `total_timeout_s` is for all attempts at a row together. Loopback and private addresses are refused unless
    `allow_private_hosts`; link-local ones always. `max_upscale` 1.0 enlarges nothing. Dropping or closing never hangs.
    Raises CoreError for a setting out of range, and when iterated after `close()`.
    """

    def __new__(
        cls,
        input: Input,
        *,
        sizes: Sequence[tuple[int, int]],
        part_rows: int,
        batch_size: int,
        parts: Sequence[int],
        concurrency: int = 64,
        per_host: int = 8,
        host_rate: float | None = None,
        connect_timeout_s: float = 10.0,
        idle_timeout_s: float = 15.0,
        total_timeout_s: float = 60.0,
        max_body_bytes: int = 67_108_864,
        retries: int = 3,
        backoff_s: float = 0.5,
        allow_private_hosts: bool = False,
        respect_opt_out: bool = True,
        user_agent: str | None = None,
        max_pixels: int = 100_000_000,
        max_upscale: float = 1.0,
        tiff: bool = False,
        verify_checksums: bool = True,
        prefetch_rows: int | None = None,
        decode_threads: int | None = None,
        byte_budget: int = 268_435_456,
        pixel_budget: int = 128_000_000,
    ) -> Ingest: ...
    def __iter__(self) -> Ingest: ...
    def __next__(self) -> Batch | PartEnd: ...
    def stats(self) -> dict[str, int]:
        """Counters since the start: `rows`, `ok`, `failed`, `bytes` (encoded), `pixels` (decoded).

        And right now: rows that are being fetched (`fetching`), or wait for a decoding thread (`queued`).
        """
    def close(self) -> None: ...
    def __enter__(self) -> Ingest: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

# --- store ----------------------------------------------------------------------------------------------------------

@final
class StoreWriter:
    """Writes the shards of a store whole: temporary file, data to disk, rename, folder to disk.

    Bytes come as C-contiguous uint8 arrays or `bytes`. Raises CoreError when the disk refuses or data do not fit.
    """

    @staticmethod
    def create(
        path: PathLike[str], arrays: str, attributes: str, fingerprint: str, whole: Mapping[str, Any]
    ) -> StoreWriter:
        """Write the metadata (`arrays`: JSON list of `ddx.data.layout.spec`; `attributes`: JSON) and `whole` arrays of
        one shard; the root's `zarr.json` last. `fingerprint` goes into every commit record."""
    @staticmethod
    def grow(path: PathLike[str], rows: int, num_parts: int, attributes: str) -> None:
        """Give a store room for so many rows and parts, and other attributes (JSON); the root's `zarr.json` last."""
    @staticmethod
    def create_like(path: PathLike[str], source: PathLike[str], rows: int, num_parts: int, attributes: str) -> None:
        """Create a store of so many rows and parts with the arrays of `source`; those of one shard are copied."""
    @staticmethod
    def open(path: PathLike[str], fingerprint: str) -> StoreWriter: ...
    def write_part(
        self,
        *,
        part: int,
        first_row: int,
        rows: int,
        ok: int,
        failed: Mapping[str, int],
        shards: Mapping[str, tuple[Sequence[int] | None, Any]],
        files: Mapping[str, Any],
        replace: bool = False,
        links: Mapping[str, PathLike[str]] = ...,
    ) -> str:
        """Write shard `part` of each array in `shards` (numbers of the chunks that exist, None for the first ones; and
        their bytes), then `files` by path, then the commit record, which is returned as JSON. `replace`: the part is
        done, and counts as it is until the new one is whole. `links`: shards that are files of another store, by their
        paths in this one; they are hard-linked, or copied where that is not possible."""
    def restore(self, whole: Mapping[str, Any]) -> None:
        """Write arrays of one shard anew (their bytes by path), and every node's metadata as the root holds them."""
    def finish_replacements(self) -> None:
        """Finish what a stopped process was replacing; several processes may do so at once."""
    def committed(self, first: int, end: int) -> list[str]:
        """The records, as JSON, of the parts from `first` to before `end` that are done: equal fingerprint, every file
        of its size."""

@final
class StoreVerifier:
    """Reads a store whole; calls may come from many threads. What they return: bytes read, and (file, reason) of each
    file that is damaged. Raises CoreError when this is not a store."""

    def __new__(cls, path: PathLike[str]) -> StoreVerifier: ...
    def part(self, part: int, ok: Sequence[int] | None) -> tuple[int, list[tuple[str, str]]]:
        """Check a part: its record, sizes, checksums, and that its chunks are those of the rows at the places `ok`."""
    def whole(self) -> tuple[int, list[tuple[str, str]]]:
        """Check the arrays of one shard, and every node's own metadata."""

@final
class BatchReader(Iterator[dict[str, Any]]):
    """An endless iterator over random batches, read ahead by `threads` of its own; `next()` releases the GIL.

    The batch at a position depends on the store, `seed` and `batch_size` (over all ranks) alone; a rank gets its slice.
    A batch is of one aspect bucket: `rows` int64 `[B]`, `latents` float16 `[B, C, h, w]`, `tokens` float16 `[B, L, D]`
    (zero behind each caption's end), `lengths` int32 `[B]`, and, if the store has them, `logvar` `[B, C, h, w]` and
    `pooled` `[B, K]`, float16. Tokens in eight bits are uint8 codes, to be multiplied with `scales` float32 `[B]`.
    A sample of a store with mirrored pictures is one of them half of the time (`flipped`: a list of bool); of several
    captions it draws one (`captions` int32 `[B]`: which). Raises CoreError naming the shard when `verify` finds
    bytes that do not match their checksum: at the first reading of a row, and at every one if the store is larger than
    half of the memory.
    """

    def __new__(
        cls,
        path: PathLike[str],
        *,
        batch_size: int,
        seed: int,
        position: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
        threads: int = 2,
        verify: bool = True,
    ) -> BatchReader: ...
    @property
    def num_rows(self) -> int:
        """Rows that a batch may hold."""
    @property
    def position(self) -> int:
        """Number of the batch that comes next."""
    def __iter__(self) -> BatchReader: ...
    def __next__(self) -> dict[str, Any]: ...
