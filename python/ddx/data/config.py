"""The settings of `ddx precompute` and `ddx inspect`. The defaults suit SANA-600M at 512 px and LAION's URLs."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ddx.config import REQUIRED, option
from ddx.errors import UsageError, nearest
from ddx.teachers.samplers.names import NAMES, OWN

# The reasons for which a row fails, as `rows.parquet` names them.
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
SYNTHETIC = ("synthetic_steps", "synthetic_guidance", "synthetic_seed", "synthetic_sampler", "synthetic_data")
OF_RAY = ("engine", "ray_address", "ray_cpus", "ray_gpus", "ray_retries")
# Settings of given pictures, with the values that they must have when there are none.
OF_PICTURES = {
    **{"url_column": None, "image_column": None, "path_column": None, "dedup": "none", "flip": False},
    **{"posterior": "mode", "max_aspect": 1.0, "stage": "all"},
}


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """Encode images and captions into a store of latents and embeddings."""

    teacher: str = option(
        "sana-600m", "teacher: a name, a folder, a hub id or one .safetensors file", metavar="NAME|PATH"
    )
    out: Path | None = option(None, "path of the store (none: in the workspace)", metavar="PATH")
    resolution: int | None = option(None, "picture size in pixels (none: the teacher's own)", example=512)
    batch_size: int = option(8, "pictures per pass of the autoencoder; another size changes the last bits of latents")
    memory: str | None = option(
        None,
        "device memory to encode within: chooses the batch size and what waits on the host",
        metavar="SIZE",
        example="8GB",
    )
    part_rows: int = option(1024, "rows per shard; a stopped run loses at most one shard")
    url_column: str | None = option(None, "column of image URLs (none: found by name)", metavar="NAME")
    image_column: str | None = option(None, "column of encoded image bytes (none: found by name)", metavar="NAME")
    path_column: str | None = option(None, "column of local image paths (none: found by name)", metavar="NAME")
    caption_column: tuple[str, ...] = option(
        (),
        "column of captions (none: found by name); may be repeated, training then draws one caption per picture",
        metavar="NAME",
    )
    max_captions: int | None = option(None, "largest number of captions to keep from a list (none: all)")
    caption_encoding: str | None = option(
        None,
        "encoding of captions that are not UTF-8 and have no byte order mark, such as cp1252 (none: these rows fail)",
        metavar="NAME",
    )
    key_column: str | None = option(None, "column of row names (none: found by name)", metavar="NAME")
    where: str | None = option(None, "condition on rows, such as: width >= 512 and aesthetic > 5", metavar="CONDITION")
    dedup: str = option(
        "none",
        "keep only the first row with the same URL or path (url), or with the same image bytes (content)",
        choices=("none", "url", "content"),
    )
    limit: int | None = option(None, "take only the first N rows (none: all)", example=10_000)
    shuffle: int | None = option(None, "seed with which --limit takes random rows instead of the first", metavar="SEED")
    synthetic: bool = option(False, "let the teacher draw the pictures; the sources need captions only")
    synthetic_steps: int = option(20, "steps of the teacher, with --synthetic")
    synthetic_guidance: float | None = option(None, "guidance of the teacher, with --synthetic (none: its default)")
    synthetic_seed: int = option(0, "seed of the teacher's noise, with --synthetic")
    synthetic_sampler: str = option(
        OWN,
        "sampler of the teacher, with --synthetic (own: its family's deterministic one); docs/teachers.md",
        choices=NAMES,
    )
    synthetic_data: Path | None = option(
        None,
        "store whose latents give --synthetic-sampler analytic-dpm its variances (none: the teacher's newest)",
        metavar="STORE",
    )
    flip: bool = option(False, "encode mirrored pictures too; training draws one of the two")
    posterior: str = option(
        "mode",
        "latents to store, if the autoencoder returns a distribution; params: mean and variance, drawn in training",
        choices=("mode", "sample", "params"),
    )
    text_dtype: str = option(
        "float16",
        "dtype of stored text embeddings; float8 takes half the space, with one scale per caption",
        choices=("float16", "float8"),
    )
    max_aspect: float = option(
        1.0, "largest aspect ratio that pictures keep, in buckets of sizes; 1: crop all to a square"
    )
    bucket_step: int | None = option(
        None, "sides of buckets are multiples of this many pixels (none: an eighth of the resolution)"
    )
    max_pixels: int = option(100_000_000, "largest number of pixels; larger pictures are never decoded")
    max_upscale: float = option(
        1.0, "largest factor for enlarging small pictures; pictures that need more are skipped. 1: never enlarge"
    )
    tiff: bool = option(False, "decode TIFF too")
    concurrency: int = option(128, "requests in flight")
    per_host: int = option(16, "requests in flight to one host")
    host_rate: float | None = option(None, "largest number of requests per second to one host (none: no limit)")
    retries: int = option(3, "retries after a timeout, a reset, 429 or 5xx")
    connect_timeout_s: float = option(10.0, "seconds to wait for a connection")
    idle_timeout_s: float = option(10.0, "seconds to wait for the next bytes of a body")
    total_timeout_s: float = option(60.0, "seconds allowed for one picture")
    max_body_bytes: int = option(64 << 20, "largest size of an encoded picture in bytes")
    backoff_s: float = option(0.5, "seconds before the first retry; the wait doubles, with jitter")
    respect_opt_out: bool = option(True, "skip pictures whose server sends `X-Robots-Tag: noai` or similar")
    allow_private_hosts: bool = option(False, "allow URLs of loopback and private addresses")
    verify_checksums: bool = option(True, "skip pictures that do not match the row's md5 or sha256")
    user_agent: str | None = option(None, "the User-Agent header (none: ddx's own)")
    stage: str = option(
        "all",
        "fetch: download to disk, without the teacher's weights; encode: encode the fetched pictures; all: both",
        choices=("all", "fetch", "encode"),
    )
    retry: tuple[str, ...] = option(
        (), "retry failed rows of this status, such as timeout or 'http_5*'; all: every failed row"
    )
    verify: bool = option(False, "first check the existing parts against their checksums, and rebuild damaged ones")
    append: bool = option(False, "add the rows to the existing store of --out")
    prefetch_rows: int | None = option(None, "rows to fetch and decode ahead (none: enough for the settings above)")
    decode_threads: int | None = option(None, "threads that decode (none: one per core)")
    rank: int | None = option(
        None, "number of this process among --world, from 0: a task of a job array (none: torchrun's)", metavar="N"
    )
    world: int | None = option(
        None, "number of processes that share the work, which meet through files alone (none: torchrun's)", metavar="N"
    )
    engine: str = option(
        "local", "what runs the parts: this process, or tasks of a Ray cluster", choices=("local", "ray")
    )
    ray_address: str | None = option(
        None,
        "address of the Ray cluster (none: that of this machine, else one of its own)",
        metavar="HOST:PORT",
    )
    ray_cpus: float | None = option(None, "cores of a task of Ray (none: a GPU's share of its machine, else up to 4)")
    ray_gpus: float | None = option(None, "GPUs of a task of Ray (none: one that encodes, if the cluster has any)")
    ray_retries: int = option(3, "times that a task of Ray tries a failing part again, on other machines if it can")
    dtype: str = option("auto", "dtype of the encoders (auto: bf16 on a GPU)", choices=("auto", "float32", "bf16"))
    device: str = option("auto", "device to encode on (auto: a GPU if present)", metavar="DEVICE")

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
        if self.memory is not None and self.stage == "fetch":
            raise UsageError("--memory is for encoding, and --stage fetch does none", hint="leave --memory away")
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
        self._check_rank()
        self._check_ray()
        if self.host_rate is not None and not self.host_rate > 0:
            raise UsageError(f"host_rate = {self.host_rate} is not above 0", hint="--host-rate 2 is two a second")

    def _check_rank(self) -> None:
        if (self.rank is None) != (self.world is None):
            given, missing = ("rank", "world") if self.world is None else ("world", "rank")
            raise UsageError(
                f"{given} = {getattr(self, given)} says nothing without {missing}",
                hint="--rank $SLURM_ARRAY_TASK_ID --world $SLURM_ARRAY_TASK_COUNT",
            )
        if self.rank is not None and self.world is not None and not 0 <= self.rank < self.world:
            raise UsageError(
                f"rank = {self.rank} is not among the {self.world} of world, which count from 0",
                hint=f"number the tasks from 0: sbatch --array=0-{max(self.world, 1) - 1}",
            )

    def _check_ray(self) -> None:
        if self.engine == "ray":
            if self.rank is not None:
                raise UsageError("--engine ray shares the parts out by itself", hint="leave --rank and --world away")
            if self.ray_address is not None and self.ray_address.startswith("ray://"):
                raise UsageError(
                    f"ray_address = {self.ray_address} is Ray's client, which does not hand over parts as they end",
                    hint="call ddx on a machine of the cluster, or by `ray job submit`, without --ray-address",
                )
        for name in OF_RAY[1:]:
            flag, value = "--" + name.replace("_", "-"), getattr(self, name)
            if self.engine != "ray" and value != getattr(PrecomputeConfig, name):
                raise UsageError(
                    f"{name} = {value} is for tasks of Ray", hint=f"add --engine ray, or leave {flag} away"
                )
            if isinstance(value, float | int) and (value < 0 or (name == "ray_cpus" and value == 0)):
                raise UsageError(f"{name} = {value} is too little", hint=f"leave {flag} away")

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
    """Join several stores into one."""

    out: Path = option(REQUIRED, "the new store", metavar="PATH")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what a store holds."""

    report: bool = option(False, "write a page with statistics and plots of the store")
    verify: bool = option(False, "check the whole store against its checksums, and list damaged files")
    out: Path | None = option(None, "folder of the report (none: in the workspace)", metavar="PATH")

    def __post_init__(self) -> None:
        if self.out is not None and not self.report:
            raise UsageError(f"out = {self.out} is the folder of a report, and none is asked for", hint="add --report")
