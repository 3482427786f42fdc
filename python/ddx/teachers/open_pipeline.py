"""A pipeline folder that is open: what its configs say, what shapes its stores, and its components."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.run_record import read_run
from ddx.teachers.autoencoding import Autoencoding
from ddx.teachers.components import component_config, content_hash, load_model, load_tokenizer, refuse_unknown_parts
from ddx.teachers.families.table import Family
from ddx.teachers.hub import Source
from ddx.teachers.prepared import prepared_record
from ddx.teachers.size import Size, height_and_width
from ddx.teachers.stored_weights import open_later


class OpenPipeline(Autoencoding):
    """Configs are read at construction, components load at first use."""

    family: str
    denoiser_part: ClassVar[str] = "transformer"  # its folder in the pipeline
    part_classes: ClassVar[Mapping[str, tuple[str, ...]]]
    """The classes that the family accepts, by part. The denoiser and the autoencoder are two, text encoders and
    tokenizers are the others; all but the denoiser shape a store, and a student has copies of them."""
    left_out: ClassVar[tuple[str, ...]] = ()  # parts of the pipeline that a student does without
    text_width_key: ClassVar[str]  # where the denoiser's config says how wide the text tokens are
    family_guidance: ClassVar[float]

    embedded_guidance: bool = False  # whether the denoiser takes the guidance scale itself
    default_guidance: float
    default_resolution: int

    def __init__(
        self,
        source: Source,
        *,
        family: Family,
        device: torch.device,
        dtype: torch.dtype,
        resolution: int | None = None,
        default_resolution: int | None = None,
        default_guidance: float | None = None,
    ) -> None:
        refuse_unknown_parts(source, tuple(self.part_classes), self.left_out)
        self.family, self._native = family.name, family.resolution
        self.embedded_guidance = family.call.embedded_guidance
        self.source_info = source
        self.name = source.name
        self.source = source.origin
        self.revision = source.revision
        self.licence = source.licence
        self.folder = source.folder
        self.device = device
        self.home = device  # where components load, if that is not where they compute
        self.dtype = dtype
        self.denoiser_config = component_config(source, self.denoiser_part)
        self.vae_config = component_config(source, "vae")
        self._parts: dict[str, Any] = {}
        self._prepared = prepared_record(self.folder)
        if self._prepared is not None:
            default_resolution, default_guidance = self._prepared["resolution"], self._prepared["guidance"]
        self.default_resolution = resolution or default_resolution or self._native_resolution
        self.default_guidance = default_guidance if default_guidance is not None else self.family_guidance
        self.latent_shape(self.default_resolution)  # refuses a resolution that does not fit

    # what the configs say

    def student_sign(self) -> tuple[str, str] | None:
        """What in the configs says for certain that this is a few-step student, and what to do; None for a teacher.

        An exported student of ddx may have the same sign: it is known by its run.json, before.
        """
        return None

    @property
    def stored_parts(self) -> tuple[str, ...]:
        """The parts that shape a store: all but the denoiser."""
        return tuple(part for part in self.part_classes if part != self.denoiser_part)

    @property
    def patch_size(self) -> int:
        """Cells of the latents a side of what the denoiser makes one token of."""
        return int(self.denoiser_config.get("patch_size") or 1)

    @property
    def resolution_multiple(self) -> int:
        """Resolutions must be multiples of this. Default: a cell of the latents, times the denoiser's patch."""
        return self.compression * self.patch_size

    @property
    def latent_channels(self) -> int:
        """The channels of the latents."""
        return int(self.denoiser_config["in_channels"])

    @property
    def text_width(self) -> int:
        """The width D of the text tokens."""
        return int(self.denoiser_config[self.text_width_key])

    @property
    def pooled_width(self) -> int | None:
        """The width P of the pooled embedding, None for a denoiser that takes none."""
        config = self.denoiser_config
        if config.get("addition_embed_type") == "text_time":  # a UNet that embeds six numbers behind it
            return int(config["projection_class_embeddings_input_dim"]) - 6 * int(config["addition_time_embed_dim"])
        width = config.get("pooled_projection_dim")
        return None if width is None else int(width)

    def latent_shape(self, size: Size | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of a picture's latents; UsageError if the size, in pixels, does not fit."""
        height, width = height_and_width(size or self.default_resolution)
        if min(height, width) <= 0 or height % self.resolution_multiple or width % self.resolution_multiple:
            shown = size if isinstance(size, int) else f"{width}x{height}"
            raise UsageError(
                f"{self.name} draws at multiples of {self.resolution_multiple} pixels, not at {shown}",
                hint=f"for example --resolution {self._native_resolution}",
            )
        return self.latent_channels, height // self.compression, width // self.compression

    @property
    def _native_resolution(self) -> int:
        return self._native or int(self.denoiser_config["sample_size"]) * self.compression

    def fingerprint(self, resolution: int | None = None) -> dict[str, str | int | float]:
        """Everything that shapes stored latents and embeddings; two equal fingerprints mean interchangeable stores.

        A pipeline from the hub is known by its commit; one from a folder by the SHA-256 of its autoencoder, text
        encoder and tokenizer. The denoiser does not shape a store and is left out.
        """
        channels, height, width = self.latent_shape(resolution)
        if self._prepared is not None:  # the parts that shape a store are those of the teacher that it was made of
            weights = str(self._prepared["teacher_fingerprint"]["weights"])
        elif self.revision in ("local", "bundled"):
            weights = "sha256:" + self._once("hash", lambda: content_hash(self.source_info, self.stored_parts))
        else:
            weights = f"{self.source}@{self.revision}"
        return {
            "family": self.family,
            "weights": weights,
            "resolution": resolution or self.default_resolution,
            "latent_shape": f"{channels}x{height}x{width}",
            "scaling_factor": _in_short(self.scaling_factor),
            "shift_factor": _in_short(self.shift_factor),
            "text_width": self.text_width,
            **self._text_fingerprint(),
        }

    def network_identity(self) -> str:
        """What decides what the denoiser says: its commit, or a hash of its weights and scheduler where there is none.

        With :meth:`fingerprint` it decides the pictures. Fine-tunes of one network share stores, and not this.
        """
        if self.revision not in ("local", "bundled"):
            return f"{self.source}@{self.revision}"
        parts = (self.denoiser_part, "scheduler")
        known: str = self._once("hash of the denoiser", lambda: content_hash(self.source_info, parts))
        return known

    @abstractmethod
    def _text_fingerprint(self) -> dict[str, str | int | float]:
        """The settings of text encoding that shape the embeddings."""

    @property
    def validation_prompts(self) -> tuple[str, ...]:
        """The committed prompts that this teacher's pictures are compared on."""
        from ddx.teachers.prompts import STANDARD_PROMPTS, scene_prompts

        return scene_prompts() if self.draws_scenes else STANDARD_PROMPTS

    @property
    def draws_scenes(self) -> bool:
        """Whether it was trained on the generated scenes: the bundled teacher, and those of `ddx train`."""
        if self._prepared is not None:
            return bool(self._prepared["draws_scenes"])
        return self.revision == "bundled" or (read_run(self.folder) or {}).get("kind") == "teacher"

    @property
    def made_of(self) -> str:
        """The name of the teacher that this one was prepared from, however often; its own if it was not."""
        return self.name if self._prepared is None else str(self._prepared["prepared_from"])

    # components

    def use_part(self, part: str, component: Any) -> None:
        """Take a component that is loaded already."""
        self._parts[part] = component

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Within, components are opened in the host's memory: the device never holds a whole one."""
        home, self.home = self.home, torch.device("cpu")
        try:
            yield
        finally:
            self.home = home

    def is_loaded(self, part: str) -> bool:
        """Whether a component is in memory."""
        return part in self._parts

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._parts:
            self._parts[key] = make()
        return self._parts[key]

    def _model(self, part: str, dtype: torch.dtype) -> nn.Module:
        classes = self.part_classes[part]
        model: nn.Module = self._once(
            part, lambda: load_model(self.source_info, part, classes, dtype=dtype, device=self.home)
        )
        return model

    def network(self) -> nn.Module:
        """The frozen denoiser, in evaluation mode, in the teacher's dtype."""
        network: nn.Module = self._once(self.denoiser_part, lambda: self._load_denoiser(self.dtype))
        return network

    def _load_denoiser(self, dtype: torch.dtype) -> nn.Module:
        """The denoiser from its files, or one whose weights stay in them (:mod:`ddx.teachers.stored_weights`)."""
        part, classes = self.denoiser_part, self.part_classes[self.denoiser_part]
        later = open_later(self.source_info, part, classes, dtype)
        return later or load_model(self.source_info, part, classes, dtype=dtype, device=self.home)

    def new_student_network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A trainable denoiser with the teacher's weights, read from the files again so that none are rounded.

        It supports diffusers' ``enable_gradient_checkpointing()``.
        """
        return self._load_denoiser(dtype).train().requires_grad_(True)

    def prepared_network(self, *, qk_norm: bool, dense_time: bool) -> nn.Module:
        """A trainable float32 denoiser with the teacher's weights and what continuous-time distillation asks for.

        Norms on the queries and keys, and a time embedding that sees t itself. UsageError of a family without these, or
        whose network has them.
        """
        raise UsageError(
            f"{self.name} needs no preparation: it is of the family {self.family}",
            hint="distil it as it is: ddx distill",
        )

    def published_weights(self, source: Source, guidance: float) -> dict[str, Tensor]:
        """The weights of a student that others published, as those of a student of this teacher.

        Its pipeline is one of the family's ``student_pipelines``; what its network takes beside a student's inputs is
        folded in, guidance at ``guidance``. UsageError where it does not fit this teacher.
        """
        raise NotImplementedError

    def vae(self) -> nn.Module:
        """The frozen autoencoder."""
        return self._model("vae", self.vae_dtype)

    def part_config(self, part: str) -> dict[str, Any]:
        """The config of a part, without what does not shape it."""
        config: dict[str, Any] = self._once(f"config of {part}", lambda: component_config(self.source_info, part))
        return config

    def text_encoder(self, part: str = "text_encoder") -> nn.Module:
        """A frozen text encoder."""
        return self._model(part, self.text_dtype)

    def tokenizer(self, part: str = "tokenizer") -> Any:
        """A tokenizer."""
        return self._once(part, lambda: load_tokenizer(self.source_info, part, self.part_classes[part]))

    @property
    def text_dtype(self) -> torch.dtype:
        """What the text encoder runs in."""
        return self.dtype

    def unload(self, *parts: str) -> None:
        """Forgets loaded components: "denoiser", "vae", "text_encoder" and its further ones. Without arguments: all."""
        for part in parts or ("denoiser", "vae", "text_encoder"):
            start = self.denoiser_part if part == "denoiser" else part
            for name in [name for name in self._parts if name.startswith(start)]:
                del self._parts[name]
            if part == "text_encoder":
                self._parts.pop("prompt_encoder", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _in_short(factor: float | list[float]) -> str:
    """A factor as it is, or a hash of those of all channels."""
    if isinstance(factor, int | float):
        return str(factor)
    return "sha256:" + hashlib.sha256(repr(factor).encode()).hexdigest()[:16]
