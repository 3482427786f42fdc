"""A pipeline folder that is open: what its configs say, what shapes its stores, and its components."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from ddx.errors import UsageError
from ddx.run_record import read_run
from ddx.teachers.autoencoding import Autoencoding
from ddx.teachers.components import component_config, content_hash, load_model, load_tokenizer
from ddx.teachers.hub import Source
from ddx.teachers.prepared import prepared_record

_STORED_PARTS = ("vae", "text_encoder", "tokenizer")


class OpenPipeline(Autoencoding):
    """Configs are read at construction, components load at first use."""

    family: ClassVar[str]
    denoiser_part: ClassVar[str]  # its folder in the pipeline
    part_classes: ClassVar[dict[str, tuple[str, ...]]]  # the classes that the family accepts, by part

    default_guidance: float
    default_resolution: int

    def __init__(
        self,
        source: Source,
        *,
        device: torch.device,
        dtype: torch.dtype,
        resolution: int | None = None,
        default_resolution: int | None = None,
        default_guidance: float | None = None,
    ) -> None:
        self.source_info = source
        self.name = source.name
        self.source = source.origin
        self.revision = source.revision
        self.licence = source.licence
        self.folder = source.folder
        self.device = device
        self.dtype = dtype
        self.denoiser_config = component_config(source, self.denoiser_part)
        self.vae_config = component_config(source, "vae")
        self.text_config = component_config(source, "text_encoder")
        self._parts: dict[str, Any] = {}
        self._prepared = prepared_record(self.folder)
        native = int(self.denoiser_config["sample_size"]) * self.compression
        if self._prepared is not None:
            default_resolution, default_guidance = self._prepared["resolution"], self._prepared["guidance"]
        self.default_resolution = resolution or default_resolution or native
        self.default_guidance = default_guidance if default_guidance is not None else self.family_guidance
        self.latent_shape(self.default_resolution)  # refuses a resolution that does not fit

    # what the configs say

    family_guidance: ClassVar[float]

    @property
    @abstractmethod
    def compression(self) -> int:
        """Pixels a side of one latent cell."""

    @property
    @abstractmethod
    def resolution_multiple(self) -> int:
        """Resolutions must be multiples of this."""

    @property
    def text_width(self) -> int:
        """The width D of the text tokens."""
        return int(self.text_config["hidden_size"])

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a square picture; UsageError if the size does not fit."""
        resolution = resolution or self.default_resolution
        if resolution <= 0 or resolution % self.resolution_multiple:
            raise UsageError(
                f"{self.name} draws at multiples of {self.resolution_multiple} pixels, not at {resolution}",
                hint=f"for example --resolution {self._native_resolution}",
            )
        side = resolution // self.compression
        return int(self.denoiser_config["in_channels"]), side, side

    @property
    def _native_resolution(self) -> int:
        return int(self.denoiser_config["sample_size"]) * self.compression

    def fingerprint(self, resolution: int | None = None) -> dict[str, str | int | float]:
        """Everything that shapes stored latents and embeddings; two equal fingerprints mean interchangeable stores.

        A pipeline from the hub is known by its commit; one from a folder by the SHA-256 of its autoencoder, text
        encoder and tokenizer. The denoiser does not shape a store and is left out.
        """
        channels, height, width = self.latent_shape(resolution)
        if self._prepared is not None:  # the parts that shape a store are those of the teacher that it was made of
            weights = str(self._prepared["teacher_fingerprint"]["weights"])
        elif self.revision in ("local", "bundled"):
            weights = "sha256:" + self._once("hash", lambda: content_hash(self.source_info, _STORED_PARTS))
        else:
            weights = f"{self.source}@{self.revision}"
        return {
            "family": self.family,
            "weights": weights,
            "resolution": resolution or self.default_resolution,
            "latent_shape": f"{channels}x{height}x{width}",
            "scaling_factor": str(self.scaling_factor),
            "shift_factor": str(self.shift_factor),
            "text_width": self.text_width,
            **self._text_fingerprint(),
        }

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
        return self.name == "sana-tiny" or (read_run(self.folder) or {}).get("kind") == "teacher"

    @property
    def made_of(self) -> str:
        """The name of the teacher that this one was prepared from, however often; its own if it was not."""
        return self.name if self._prepared is None else str(self._prepared["prepared_from"])

    # components

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._parts:
            self._parts[key] = make()
        return self._parts[key]

    def _model(self, part: str, dtype: torch.dtype) -> nn.Module:
        classes = self.part_classes[part]
        model: nn.Module = self._once(
            part, lambda: load_model(self.source_info, part, classes, dtype=dtype, device=self.device)
        )
        return model

    def network(self) -> nn.Module:
        """The frozen denoiser, in evaluation mode, in the teacher's dtype."""
        network: nn.Module = self._once(self.denoiser_part, lambda: self._load_denoiser(self.dtype))
        return network

    def _load_denoiser(self, dtype: torch.dtype) -> nn.Module:
        """The denoiser from its files; a family that has kernels for its device puts them in here."""
        classes = self.part_classes[self.denoiser_part]
        return load_model(self.source_info, self.denoiser_part, classes, dtype=dtype, device=self.device)

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
            f"{self.name} needs no preparation: it is of the family {self.family}", hint="only SANA teachers do"
        )

    def vae(self) -> nn.Module:
        """The frozen autoencoder."""
        return self._model("vae", self.vae_dtype)

    def text_encoder(self) -> nn.Module:
        """The frozen text encoder."""
        return self._model("text_encoder", self.text_dtype)

    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._once("tokenizer", lambda: load_tokenizer(self.source_info, self.part_classes["tokenizer"]))

    @property
    def text_dtype(self) -> torch.dtype:
        """What the text encoder runs in."""
        return self.dtype

    def unload(self, *parts: str) -> None:
        """Forgets loaded components: "denoiser", "vae", "text_encoder" (all without an argument)."""
        names = {"denoiser": self.denoiser_part}
        for part in parts or ("denoiser", "vae", "text_encoder"):
            self._parts.pop(names.get(part, part), None)
            if part == "text_encoder":
                self._parts.pop("prompt_encoder", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
