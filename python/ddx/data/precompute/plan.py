"""What a precompute will do, before it does anything: teacher, store, parts, and the settings that shape the bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx._core import Input
from ddx.data.buckets import described, make_buckets
from ddx.data.config import PrecomputeConfig
from ddx.data.core import core_errors
from ddx.data.fingerprint import digest, source_digest
from ddx.data.layout import SCHEMA, Sizes
from ddx.data.precompute.encode import CAPTIONS_AT_ONCE
from ddx.data.ranks import Rank
from ddx.data.sampler import check_data, open_sampler
from ddx.data.synthetic import SETTING, Synthetic
from ddx.device import find_device
from ddx.errors import DdxError, UsageError
from ddx.teachers.samplers.sampler import OWN_SAMPLER, TeacherSampler
from ddx.workspace import Workspace

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

COLUMNS = ("url_column", "image_column", "path_column", "key_column")
# Settings that shape the bytes, and are recorded where they are not what they are by default.
UNUSUAL = (
    *("where", "dedup", "limit", "shuffle", "flip", "posterior", "tiff", "verify_checksums"),
    *("max_aspect", "bucket_step", "text_dtype", "max_captions"),
)
# Those of all the recorded settings that begin to matter when pictures are encoded.
ENCODING = ("dtype", "flip", "posterior", "text_dtype")
# Settings of PrecomputeConfig that the core's Ingest takes under the same name.
INGEST = (
    *("batch_size", "max_pixels", "max_upscale", "tiff", "verify_checksums", "concurrency", "per_host", "host_rate"),
    *("retries", "backoff_s"),
    *("connect_timeout_s", "idle_timeout_s", "total_timeout_s", "max_body_bytes", "allow_private_hosts"),
    *("respect_opt_out", "user_agent", "prefetch_rows", "decode_threads"),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved precompute. `fingerprint` is the teacher's, `settings` everything else that shapes the bytes."""

    config: PrecomputeConfig
    sources: tuple[str, ...]
    rank: Rank
    input: Input
    teacher: Teacher
    store: Path
    resolution: int
    sizes: Sizes
    fingerprint: dict[str, Any]
    settings: dict[str, Any]
    synthetic: Synthetic | None = None  # how the teacher draws the pictures, if it does
    captions_at_once: int = CAPTIONS_AT_ONCE  # on the device; nothing in the store depends on it
    sampler: TeacherSampler = OWN_SAMPLER

    @property
    def digest(self) -> str:
        """The hash of everything that shapes the bytes."""
        return digest(self.fingerprint, self.settings)

    @property
    def pictures_digest(self) -> str:
        """The hash of everything that shapes pictures before they are encoded, maybe on another machine."""
        shaping = {name: value for name, value in self.settings.items() if name not in ENCODING}
        return digest({"resolution": self.resolution}, shaping)

    def attributes(self) -> dict[str, Any]:
        """What the store says of itself, but for what the text encoder adds."""
        teacher = self.teacher
        return {
            "schema": SCHEMA,
            "teacher": teacher.name,
            "teacher_source": teacher.source,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "digest": self.digest,
            "resolution": self.resolution,
            "latent_shape": list(self.teacher.latent_shape(self.resolution)),
            **described(self.sizes.buckets),
            "scaling_factor": teacher.scaling_factor,
            "shift_factor": teacher.shift_factor,
            "rows": self.sizes.rows,
            "part_rows": self.sizes.part_rows,
            "num_parts": self.sizes.num_parts,
            "part_tokens": self.sizes.part_tokens,
            "max_tokens": self.sizes.max_tokens,
            "sources": list(self.sources),
        }

    @property
    def reads(self) -> str:
        """The rows and where their parts are found, in words."""
        roles = ", ".join(f"{role} from {column}" for role, column in self.input.columns.items())
        longest, kept = self.input.longest_list, self.config.max_captions
        lists = ""
        if longest > 1:
            lists = f", up to {longest} captions a row"
            lists += f", of which the first {kept} are kept" if kept and kept < longest else ""
        return f"{self.sizes.rows} rows of {', '.join(self.sources)} ({roles}{lists})"

    def share(self, rank: int) -> range:
        """The parts of a rank."""
        return self.sizes.parts[rank :: self.rank.world]


def make_plan(config: PrecomputeConfig, sources: Sequence[str], workspace: Workspace | None = None) -> Plan:
    """Open the input and the teacher's configs; nothing is written.

    Raises UsageError or DdxError for an input without rows or columns, and for an unknown or absent teacher.
    """
    if not sources:
        raise UsageError(
            "there is nothing to precompute",
            hint="for example `ddx precompute laion.parquet`; tars, lists, folders and s3:// are read too",
        )
    places = workspace or Workspace()
    try:
        with core_errors():
            source = Input(
                list(sources),
                **{name: getattr(config, name) for name in COLUMNS},
                caption_columns=config.caption_column,
                max_captions=config.max_captions,
                caption_encoding=config.caption_encoding,
                apart=[places.root, *([config.out] if config.out else [])],
                captions_only=config.synthetic,
                filter=config.where,
                unique=config.dedup == "url",
                limit=config.limit,
                shuffle=config.shuffle,
            )
    except DdxError as error:
        raise UsageError(error.message, hint=error.hint) from error  # a source that does not open is a wrong argument
    if config.synthetic and source.image_kind != "caption":
        raise UsageError(
            f"{sources[0]} has pictures as its rows, and --synthetic takes captions from tables and lists",
            hint="give parquet, CSV, TSV or JSONL with a column of captions, or leave --synthetic away",
        )
    from ddx.teachers.registry import load_teacher

    rank = Rank.here(config.rank, config.world)
    dtype = None if config.dtype == "auto" else config.dtype
    teacher = load_teacher(
        config.teacher, device=find_device(config.device, rank.local), dtype=dtype, resolution=config.resolution
    )
    if config.posterior != "mode" and not teacher.has_posterior:
        raise UsageError(
            f"posterior = {config.posterior}: the autoencoder of {teacher.name} gives no distribution of latents",
            hint="leave --posterior away",
        )
    resolution = config.resolution or teacher.default_resolution
    fingerprint = dict(teacher.fingerprint(resolution))
    synthetic, sampler = _synthetic(config, teacher, places)
    store = config.out or places.store_path(sources[0], teacher.name, resolution, synthetic=config.synthetic)
    sizes = Sizes(
        rows=source.rows,
        part_rows=config.part_rows,
        buckets=make_buckets(teacher, resolution, config.max_aspect, config.bucket_step),
        text_width=teacher.text_width,
        max_tokens=int(fingerprint["max_sequence_length"]),
        num_captions=source.num_captions,
        flip=config.flip,
        logvar=config.posterior == "params",
        float8=config.text_dtype == "float8",
    )
    settings = {
        "input": source_digest(source.files, source.identities, source.listings),
        "input_rows": source.rows,
        "columns": dict(source.columns),
        "part_rows": sizes.part_rows,
        "batch_size": config.batch_size,
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "max_pixels": config.max_pixels,
        "max_upscale": config.max_upscale,
        # Absent unless given, so that a store made before they existed is still the same.
        **{name: value for name in UNUSUAL if (value := getattr(config, name)) != getattr(PrecomputeConfig, name)},
        # The others decode only what fails without them.
        **({"caption_encoding": config.caption_encoding} if source.overrides_utf8 else {}),
        **({} if synthetic is None else {SETTING: synthetic.setting()}),
    }
    return Plan(
        config=config,
        sources=tuple(str(name) for name in sources),
        rank=rank,
        input=source,
        teacher=teacher,
        store=Path(store),
        resolution=resolution,
        sizes=sizes,
        fingerprint=fingerprint,
        settings=settings,
        synthetic=synthetic,
        sampler=sampler,
    )


def _synthetic(
    config: PrecomputeConfig, teacher: Teacher, places: Workspace
) -> tuple[Synthetic | None, TeacherSampler]:
    """Return how the teacher draws, if it does, and by what."""
    if not config.synthetic:
        return None, OWN_SAMPLER
    guidance = teacher.default_guidance if config.synthetic_guidance is None else config.synthetic_guidance
    check_data(config.synthetic_sampler, config.synthetic_data, "--synthetic-data")
    sampler = open_sampler(config.synthetic_sampler, teacher, places, data=config.synthetic_data)
    known = sampler.identity().get("variances")
    how = Synthetic(
        steps=config.synthetic_steps,
        guidance=float(guidance),
        seed=config.synthetic_seed,
        sampler=config.synthetic_sampler,
        variances=known,
        network=teacher.network_identity(),
    )
    return how, sampler


def with_text(plan: Plan, pooled_width: int | None, text_scale: float) -> Plan:
    """The plan with what only the encoders tell: the width of pooled embeddings, and how large the tokens are."""
    sizes = dataclasses.replace(plan.sizes, pooled_width=pooled_width, text_scale=text_scale)
    return dataclasses.replace(plan, sizes=sizes)
