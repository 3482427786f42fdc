"""The contract of a teacher: a frozen text-to-image diffusion pipeline, whatever its family.

A family adapter is the only place that knows a model's quirks. Everything outside speaks in scaled latents
(what the denoiser sees), float64 times of the teacher's process, and :class:`Condition`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.process import PredictionKind, Process
from ddx.run_record import read_run
from ddx.teachers.autoencoding import Autoencoding
from ddx.teachers.components import component_config, content_hash, load_model, load_tokenizer
from ddx.teachers.condition import Condition
from ddx.teachers.features import as_map, outputs_of
from ddx.teachers.hub import Source
from ddx.teachers.prepared import prepared_record
from ddx.teachers.scalar_input import moved_inputs

Sampler = Literal["consistency", "ode", "own"]
"""How a saved network draws: fresh noise at each step, an ODE, or as its teacher's own scheduler does."""


class Teacher(Autoencoding):
    """A frozen diffusers pipeline. Configs are read at construction, components load at first use."""

    family: ClassVar[str]
    denoiser_part: ClassVar[str]  # its folder in the pipeline
    part_classes: ClassVar[dict[str, tuple[str, ...]]]  # the classes that the family accepts, by part

    process: Process
    prediction: PredictionKind
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

    # what it computes

    @abstractmethod
    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """``network`` (the teacher's or a student of its shape) at ``(x_t, t)``.

        x_t: scaled noisy latents ``[B, C, h, w]``; t: float64 ``[B]`` or ``[]`` of :attr:`process`. Returns float32
        ``[B, C, h, w]`` in the kind :attr:`prediction`. Differentiable.
        """

    @torch.no_grad()
    def predict_dual(
        self, network: nn.Module, x_t: Tensor, dx_t: Tensor, t: Tensor, dt: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """:meth:`predict`, and its exact derivative along ``(dx_t, dt)``: both float32 ``[B, C, h, w]``, no gradients.

        dx_t: shaped as x_t; dt: float64, shaped as t. ``network`` is the bare one, not its data-parallel wrapper.
        Numbers that are fed with a tangent (:mod:`ddx.teachers.scalar_input`) move along. A derivative by time needs a
        family whose network takes times between the integers.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def run(x: Tensor, time: Tensor, move: Tensor) -> Tensor:
            with moved_inputs(network, move):
                return self.predict(network, x, time, condition)

        move = torch.zeros((), device=x_t.device)
        with sdpa_kernel(SDPBackend.MATH):  # the one form of softmax attention that has a forward-mode derivative
            found = torch.func.jvp(run, (x_t, t, move), (dx_t, dt.to(t.dtype), torch.ones_like(move)))
        return found[0], found[1]

    def guided(
        self,
        network: nn.Module,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        null: Condition,
        guidance: Tensor | float,
    ) -> Tensor:
        """Classifier-free guidance ``uncond + s (cond - uncond)`` from one doubled batch; s a number or ``[B]``."""
        if isinstance(guidance, int | float) and guidance == 1.0:
            return self.predict(network, x_t, t, condition)
        num = len(x_t)
        both = Condition.cat([null.expand(num), condition.expand(num)])
        times = t.expand(num) if t.ndim == 0 else t
        uncond, cond = self.predict(network, torch.cat([x_t, x_t]), torch.cat([times, times]), both).chunk(2)
        scale = guidance
        if isinstance(scale, Tensor):
            scale = scale.to(device=cond.device, dtype=cond.dtype).reshape(-1, *(1,) * (cond.ndim - 1))
        return uncond + scale * (cond - uncond)

    @abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> list[Condition]:
        """One condition of one row for each prompt, trimmed to its true length, as the family's pipeline encodes it."""

    @abstractmethod
    def null_condition(self) -> Condition:
        """What the family's pipeline computes for the empty negative prompt: one row, trimmed."""

    @abstractmethod
    def _text_fingerprint(self) -> dict[str, str | int | float]:
        """The settings of text encoding that shape the embeddings."""

    @abstractmethod
    def time_embedding_linear(self, network: nn.Module) -> nn.Linear:
        """The last linear of the timestep embedder.

        Its output is where other embeddings are added, and its bias is where a constant one is folded in.
        """

    lora_targets: ClassVar[tuple[str, ...]]  # the layers that low-rank students train, by the ends of their names

    @abstractmethod
    def feature_layers(self, network: nn.Module) -> list[nn.Module]:
        """The layers of the denoiser whose outputs a discriminator looks at, from early to late."""

    def features(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """The outputs ``[B, C_k, h_k, w_k]`` of :meth:`feature_layers` in a :meth:`predict`; differentiable by x_t."""
        with outputs_of(self.feature_layers(network)) as found:
            self.predict(network, x_t, t, condition)
        return [as_map(value, x_t) for value in found]

    # drawing

    def initial_noise(self, generators: Sequence[torch.Generator], resolution: int | None = None) -> Tensor:
        """Unit noise float32 ``[B, C, h, w]``, one generator a picture, drawn as diffusers draws it."""
        from diffusers.utils.torch_utils import randn_tensor

        shape = (1, *self.latent_shape(resolution))
        rows = [randn_tensor(shape, generator=g, device=self.device, dtype=torch.float32) for g in generators]
        return torch.cat(rows)

    @abstractmethod
    def sampling_scheduler(self, num_steps: int) -> tuple[Any, Tensor]:
        """The family's diffusers scheduler with its timesteps set, and the process times (float64) of its steps."""

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        null: Condition,
        *,
        num_steps: int,
        guidance: float | None = None,
        noise: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        resolution: int | None = None,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Scaled latents float32 ``[B, C, h, w]``, drawn in ``num_steps`` steps of the family's deterministic solver.

        Starts at ``noise``, or at noise from one generator a picture; guidance None is the teacher's default.
        """
        if noise is None:
            if generators is None:
                raise ValueError("sample needs noise or generators")
            noise = self.initial_noise(generators, resolution)
        network = network if network is not None else self.network()
        guidance = self.default_guidance if guidance is None else guidance
        condition, null = condition.to(self.device), null.to(self.device)
        scheduler, times = self.sampling_scheduler(num_steps)
        x = noise.to(self.device, torch.float32)
        for timestep, t in zip(scheduler.timesteps, times, strict=True):
            prediction = self.guided(network, x, t.expand(len(x)), condition, null, guidance)
            x = scheduler.step(prediction, timestep, x, return_dict=False)[0]
        return x

    # leaving

    @abstractmethod
    def student_scheduler(self, sampler: Sampler = "consistency") -> Any:
        """A diffusers scheduler that samples a few-step student.

        "consistency": predict x0, add fresh noise, and end at x0; "ode": go along the prediction, without noise.
        """

    def save_student(
        self, folder: Path, network: nn.Module, *, dtype: torch.dtype = torch.float32, sampler: Sampler = "consistency"
    ) -> None:
        """Writes a plain diffusers pipeline: ``network`` in ``dtype``, the teacher's other parts, a scheduler."""
        from ddx.teachers.export import write_pipeline

        write_pipeline(
            folder,
            source=self.source_info,
            denoiser_part=self.denoiser_part,
            network=network,
            dtype=dtype,
            scheduler=self.own_scheduler() if sampler == "own" else self.student_scheduler(sampler),
        )

    def own_scheduler(self) -> Any:
        """The diffusers scheduler that the pipeline came with."""
        import diffusers

        kind = getattr(diffusers, self.source_info.index["scheduler"][1])
        return kind.from_pretrained(self.folder / "scheduler", local_files_only=True)


_STORED_PARTS = ("vae", "text_encoder", "tokenizer")
