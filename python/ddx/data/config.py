"""The settings of `ddx precompute` and `ddx inspect`. The defaults suit SANA-600M at 512 px and LAION's URLs."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ddx.config import REQUIRED, option
from ddx.errors import UsageError, nearest

# Why a row may fail, as `rows.parquet` says it.
STATUSES = (
    *(
        "no_caption",
        "caption_encoding",
        "caption_type",
        "no_image",
        "unreadable_source",
        "missing_file",
        "unreadable_file",
        "bad_url",
        "refused_address",
    ),
    *("dns", "connect", "timeout", "reset", *(f"http_{code}" for code in range(300, 600)), "redirects", "opted_out"),
    *("too_large", "empty", "wrong_checksum", "not_an_image", "unsupported_format", "too_many_pixels", "too_small"),
    *("decode", "non_finite", "float16_range", "float8_error", "duplicate"),
)
SYNTHETIC = ("synthetic_steps", "synthetic_guidance", "synthetic_seed")
# Settings that say what happens to given pictures, as they must be where there are none.
OF_PICTURES = {
    **{"url_column": None, "image_column": None, "path_column": None, "dedup": "none", "flip": False},
    **{"posterior": "mode", "max_aspect": 1.0, "stage": "all"},
}


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Encode images and captions into a store of latents and embeddings."""

    teacher: str = option("sana-600m", "teacher: a name, a folder or a hub id", metavar="NAME|PATH")
    out: Path | None = option(None, "the store (none: a place in the workspace)", metavar="PATH")
    resolution: int | None = option(None, "picture size in pixels (none: the teacher's own)", example=512)
    batch_size: int = option(8, "pictures that the autoencoder sees at a time (it shapes the last bits)")
    part_rows: int = option(1024, "rows of one shard, which is what a stopped run may lose")
    url_column: str | None = option(None, "column of image URLs (none: found by its name)", metavar="NAME")
    image_column: str | None = option(None, "column of encoded image bytes (none: found by its name)", metavar="NAME")
    path_column: str | None = option(None, "column of local image paths (none: found by its name)", metavar="NAME")
    caption_column: tuple[str, ...] = option(
        (), "column of captions (none: found by its name); may be repeated: training draws one of them", metavar="NAME"
    )
    max_captions: int | None = option(None, "captions to keep of a row that has a list of them (none: all)")
    caption_encoding: str | None = option(
        None,
        "of captions that are not UTF-8 and say nothing of it, such as cp1252 (none: such rows fail)",
        metavar="NAME",
    )
    key_column: str | None = option(None, "column that names a row (none: found by its name)", metavar="NAME")
    where: str | None = option(None, "rows to take, such as: width >= 512 and aesthetic > 5", metavar="CONDITION")
    dedup: str = option(
        "none",
        "take the first of rows with the same URL or path, or with the same bytes",
        choices=("none", "url", "content"),
    )
    limit: int | None = option(None, "rows to take at most, the first ones (none: all)", example=10_000)
    shuffle: int | None = option(None, "a seed: --limit takes random rows and not the first", metavar="SEED")
    synthetic: bool = option(
        False, "let the teacher draw the pictures: of tables and lists the captions alone are read, which is enough"
    )
    synthetic_steps: int = option(20, "steps in which the teacher draws")
    synthetic_guidance: float | None = option(None, "guidance at which the teacher draws (none: its default)")
    synthetic_seed: int = option(0, "seed of the noise that the teacher draws from")
    flip: bool = option(False, "encode the mirrored pictures too; training draws one of both")
    posterior: str = option(
        "mode",
        "which latents of an autoencoder that gives a distribution; params: mean and variance, drawn in training",
        choices=("mode", "sample", "params"),
    )
    text_dtype: str = option(
        "float16",
        "of stored text embeddings; float8: half the size, with a scale a caption",
        choices=("float16", "float8"),
    )
    max_aspect: float = option(
        1.0, "pictures keep their shape up to this ratio, in buckets of sizes; 1: all are cut to a square"
    )
    bucket_step: int | None = option(
        None, "pixels that the sides of buckets are multiples of (none: an eighth of the resolution)"
    )
    max_pixels: int = option(100_000_000, "pixels that a picture may have; larger ones are never decoded")
    max_upscale: float = option(1.0, "how much a small picture may be enlarged; 1: not at all, it is skipped")
    tiff: bool = option(False, "decode TIFF too")
    concurrency: int = option(128, "requests in flight")
    per_host: int = option(16, "requests in flight to one host")
    host_rate: float | None = option(None, "requests a second to one host at most (none: as many as are answered)")
    retries: int = option(3, "further tries after a timeout, a reset, 429 or 5xx")
    connect_timeout_s: float = option(10.0, "seconds to wait for a connection")
    idle_timeout_s: float = option(10.0, "seconds to wait for the next bytes of a body")
    total_timeout_s: float = option(60.0, "seconds that one picture may take")
    max_body_bytes: int = option(64 << 20, "bytes of an encoded picture")
    backoff_s: float = option(0.5, "seconds before the first further try; they double, with jitter")
    respect_opt_out: bool = option(True, "skip pictures whose server says `X-Robots-Tag: noai` or the like")
    allow_private_hosts: bool = option(False, "allow URLs that point at loopback and private addresses")
    verify_checksums: bool = option(True, "skip pictures that differ from the row's md5 or sha256, if it has one")
    user_agent: str | None = option(None, "the User-Agent header (none: ddx's own)")
    stage: str = option(
        "all",
        "fetch: leave the pictures on disk, without the teacher's weights; encode: those that were fetched",
        choices=("all", "fetch", "encode"),
    )
    retry: tuple[str, ...] = option((), "take rows up again that failed so, such as timeout or 'http_5*'; all: any")
    verify: bool = option(False, "first read what is there against its checksums; damaged parts are made anew")
    append: bool = option(False, "add the rows to the store of --out, which stays as it is but for them")
    prefetch_rows: int | None = option(None, "rows that are fetched and decoded ahead (none: enough for the above)")
    decode_threads: int | None = option(None, "threads that decode (none: one a core)")
    dtype: str = option("auto", "what encoders compute in (auto: bf16 on a GPU)", choices=("auto", "float32", "bf16"))
    device: str = option("auto", "where to encode (auto: the GPU if there is one)", metavar="DEVICE")

    def __post_init__(self) -> None:
        if self.shuffle is not None and self.limit is None:
            raise UsageError(
                f"shuffle = {self.shuffle} chooses which rows a limit takes, and there is none",
                hint="add --limit; training draws its rows at random anyway",
            )
        if self.shuffle is not None and self.shuffle < 0:
            raise UsageError(f"shuffle = {self.shuffle} is negative", hint="--shuffle 0 or more")
        for name in ("batch_size", "part_rows", "concurrency", "per_host", "limit", "bucket_step", "max_captions"):
            if (value := getattr(self, name)) is not None and value < 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} = {value}: at least 1 is needed", hint=f"{flag} 1 or more")
        if not 1 <= self.max_aspect < float("inf"):
            raise UsageError(f"max_aspect = {self.max_aspect} is below 1", hint="--max-aspect 2, or leave it away")
        if self.bucket_step is not None and self.max_aspect == 1:
            raise UsageError(
                f"bucket_step = {self.bucket_step} is for aspect buckets, and there are none", hint="add --max-aspect 2"
            )
        if self.retry and self.stage != "all":
            raise UsageError("--retry fetches and encodes", hint="leave --stage away")
        if self.append and self.out is None:
            raise UsageError("--append adds to a store, and none is given", hint="name it with --out")
        if self.append and self.stage != "all":
            raise UsageError(
                "--append fetches and encodes", hint="make a store of its own in stages, then join them: ddx merge"
            )
        if self.verify and self.stage == "fetch":
            raise UsageError("--verify reads a store, and --stage fetch makes none", hint="leave --verify away")
        for pattern in self.retry:
            if pattern != "all" and not any(fnmatchcase(status, pattern) for status in STATUSES):
                near = nearest(pattern, STATUSES)
                cure = f"did you mean `{near}`?" if near else "statuses are " + ", ".join(STATUSES)
                raise UsageError(f"retry = {pattern}: no row fails like that", hint=cure)
        self._check_synthetic()
        if self.host_rate is not None and not self.host_rate > 0:
            raise UsageError(f"host_rate = {self.host_rate} is not above 0", hint="--host-rate 2 is two a second")

    def _check_synthetic(self) -> None:
        """Refuse what has no meaning where pictures are drawn, and settings of drawing where they are not."""
        own = {name: getattr(PrecomputeConfig, name) for name in SYNTHETIC}
        for name, usual in (OF_PICTURES if self.synthetic else own).items():
            if (value := getattr(self, name)) != usual:
                because = (
                    ": the teacher draws the pictures" if self.synthetic else " is for pictures that the teacher draws"
                )
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{name} = {value}{because}",
                    hint=f"leave {flag} away" if self.synthetic else f"add --synthetic, or leave {flag} away",
                )
        if self.synthetic_steps < 1:
            raise UsageError(f"synthetic_steps = {self.synthetic_steps}: at least 1 is needed", hint="20 is usual")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Make one store of several."""

    out: Path = option(REQUIRED, "the new store", metavar="PATH")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what a store holds."""

    report: bool = option(False, "write a page with statistics of a store and plots")
    verify: bool = option(False, "read all of a store against its checksums, and name the damaged files")
    out: Path | None = option(None, "folder of the report (none: one in the workspace)", metavar="PATH")

    def __post_init__(self) -> None:
        if self.out is not None and not self.report:
            raise UsageError(f"out = {self.out} is the folder of a report, and none is asked for", hint="add --report")
