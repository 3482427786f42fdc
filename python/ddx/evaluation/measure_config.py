"""The settings of `ddx evaluate --reference`: what pictures are compared with, by which metrics and networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import option
from ddx.errors import UsageError, nearest
from ddx.evaluation.protocols import PROTOCOLS

METRIC_NAMES = (
    *("fid", "fid_infinity", "kid", "is", "precision", "recall", "density", "coverage"),
    *("cmmd", "fd_dinov2", "clipscore", "pickscore", "lpips"),
)
WITHOUT_REFERENCE = ("is", "clipscore", "pickscore", "lpips")
DEFAULT = ("fid", "kid", "precision", "recall", "density", "coverage")


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Compare pictures with real ones."""

    reference: str | None = option(
        None,
        "real pictures to compare with: a folder, any source of precompute, or statistics (.npz)",
        metavar="SOURCE",
    )
    pictures: Path | None = option(
        None, "folder of pictures to score, in place of drawing; --prompts has their captions", metavar="PATH"
    )
    metrics: tuple[str, ...] = option(
        (), f"metrics, of {', '.join(METRIC_NAMES)} (none: the protocol's)", metavar="NAME,NAME,…"
    )
    protocol: str | None = option(None, "a protocol of papers, pinned", choices=tuple(PROTOCOLS))
    resize: int | None = option(
        None, "side that pictures are cropped and resized to before they are compared (none: as they are)", example=256
    )
    save_statistics: Path | None = option(
        None, "file for the reference's statistics, which --reference takes again", metavar="FILE.npz"
    )
    inception: Path | None = option(None, "weights of Inception (none: torch's cache)", metavar="FILE")
    dinov2: str = option("facebook/dinov2-large", "DINOv2 of fd_dinov2", metavar="NAME|PATH")
    clip: str = option("openai/clip-vit-large-patch14", "CLIP of clipscore", metavar="NAME|PATH")
    clip_large: str = option("openai/clip-vit-large-patch14-336", "CLIP of cmmd", metavar="NAME|PATH")
    pickscore: str = option("yuvalkirstain/PickScore_v1", "scorer of pickscore, of the CLIP kind", metavar="NAME|PATH")
    resamples: int = option(200, "resamples of the pictures' features for the bands; 0: no bands")

    def __post_init__(self) -> None:
        split = tuple(name for text in self.metrics for name in text.replace("-", "_").split(",") if name)
        object.__setattr__(self, "metrics", split)
        for name in self.metrics:
            if name not in METRIC_NAMES:
                near = nearest(name, METRIC_NAMES)
                cure = f"did you mean `{near}`?" if near else "metrics are " + ", ".join(METRIC_NAMES)
                raise UsageError(f"metrics = {name}: no metric has this name", hint=cure)
        against = [name for name in self.names if name not in WITHOUT_REFERENCE]
        if self.asked and self.reference is None and against:
            raise UsageError(
                f"{against[0]} compares with real pictures, and there is no --reference",
                hint="--reference FOLDER, or --metrics " + ",".join(WITHOUT_REFERENCE),
            )
        if self.save_statistics is not None and self.reference is None:
            raise UsageError("--save-statistics saves those of a reference", hint="add --reference FOLDER")
        if self.pictures is not None and "lpips" in self.metrics:
            raise UsageError("lpips draws several pictures of a prompt", hint="leave --pictures away, or lpips")
        if self.resize is not None and self.resize < 8:
            raise UsageError(f"resize = {self.resize} is too small for a picture", hint="--resize 256")
        if self.resamples < 0:
            raise UsageError(f"resamples = {self.resamples} is negative", hint="--resamples 200")

    @property
    def asked(self) -> bool:
        """Whether the command line asks for any of this."""
        return any((self.reference, self.pictures, self.metrics, self.protocol, self.save_statistics))

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics to measure."""
        if self.metrics:
            return tuple(dict.fromkeys(self.metrics))
        if self.protocol:
            return PROTOCOLS[self.protocol].metrics
        return DEFAULT if self.reference else ("is",)

    @property
    def side(self) -> int | None:
        """The side that pictures are resized to, None to leave them as they are."""
        return self.resize or (PROTOCOLS[self.protocol].resize if self.protocol else None)
