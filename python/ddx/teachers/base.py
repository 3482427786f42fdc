"""The contract of a teacher: a frozen text-to-image diffusion pipeline, whatever its family.

A family adapter is the only place that knows a model's quirks. Everything outside speaks in scaled latents
(what the denoiser sees), float64 times of the teacher's process, and :class:`Condition`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ddx.process import PredictionKind, Process
from ddx.teachers.condition import Condition
from ddx.teachers.extra_input import GUIDANCE, moved_inputs, scalar_input
from ddx.teachers.features import as_map, every_fourth, outputs_of
from ddx.teachers.open_pipeline import OpenPipeline
from ddx.teachers.size import Size
from ddx.teachers.truncation import Cut, cut

if TYPE_CHECKING:
    from ddx.teachers.samplers.sampler import TeacherSampler

Sampler = Literal["consistency", "ode", "own"]
"""How a saved network draws: fresh noise at each step, an ODE, or as its teacher's own scheduler does."""


class Teacher(OpenPipeline):
    """A frozen diffusers pipeline that computes."""

    process: Process
    prediction: PredictionKind
    takes_sizes: ClassVar[bool] = False
    """Whether the network is told of the original picture's size and of its crop, see :class:`Condition`."""

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
        Numbers that are fed with a tangent (:mod:`ddx.teachers.extra_input`) move along. A derivative by time needs a
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
        """Classifier-free guidance ``uncond + s (cond - uncond)``; s a number or ``[B]``.

        A network that takes the scale itself is given it, in one pass.
        """
        if self.embedded_guidance:
            with scalar_input(network, GUIDANCE, guidance):
                return self.predict(network, x_t, t, condition)
        if isinstance(guidance, int | float) and guidance == 1.0:
            return self.predict(network, x_t, t, condition)
        num = len(x_t)
        condition = condition.expand(num)
        null = null.expand(num).with_sizes(condition.sizes)
        if self.doubles_batch:
            both = Condition.cat([null, condition])
            times = t.expand(num) if t.ndim == 0 else t
            with self.text_alone(network, num) if null.tokens.shape[1] == 1 else nullcontext():
                uncond, cond = self.predict(network, torch.cat([x_t, x_t]), torch.cat([times, times]), both).chunk(2)
        else:
            uncond, cond = (self.predict(network, x_t, t, text) for text in (null, condition))
        scale = guidance
        if isinstance(scale, Tensor):
            scale = scale.to(device=cond.device, dtype=cond.dtype).reshape(-1, *(1,) * (cond.ndim - 1))
        return self.combine(uncond, cond, scale)

    text_is_masked: ClassVar[bool] = False
    """Whether the network masks padding on the device, so that a text may be padded to any length."""

    doubles_batch: ClassVar[bool] = True
    """Whether both halves of guidance are one batch, as in the family's pipeline; else each is a pass of its own."""

    def text_alone(self, network: nn.Module, num_rows: int) -> AbstractContextManager[None]:
        """Within, passes may take the text of their first rows, one token padded to the others' length, as one token.

        For families whose network sees no padding, and may save what it costs.
        """
        return nullcontext()

    def same_text(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within, all passes of a shape have the same text, and may keep what they make of it; nothing else does."""
        return nullcontext()

    def combine(self, uncond: Tensor, cond: Tensor, scale: Tensor | float) -> Tensor:
        """Two predictions ``[B, C, h, w]`` as one; the family's pipeline may limit what comes out."""
        return uncond + scale * (cond - uncond)

    @abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> list[Condition]:
        """One condition of one row for each prompt, trimmed to its true length, as the family's pipeline encodes it."""

    def null_condition(self) -> Condition:
        """What the family's pipeline computes for the empty negative prompt: one row, trimmed."""
        return self.encode_text([""])[0]

    def cut(self, text: str) -> Cut | None:
        """What the encoders do not read of a text that is too long for them, None where they read all of it."""
        tokenizer = self.tokenizer()
        return cut(tokenizer, text, tokenizer.model_max_length - tokenizer.num_special_tokens_to_add())

    def fast(self, network: nn.Module) -> nn.Module:
        """The denoiser with the kernels that the family has for its device, put in where they are faster."""
        return network

    time_linear: ClassVar[str]
    """The last linear of the timestep embedder, by its name in the denoiser."""

    def time_embedding_linear(self, network: nn.Module) -> nn.Linear:
        """The layer :attr:`time_linear`.

        Its output is where other embeddings are added, and its bias is where a constant one is folded in.
        """
        linear = network.get_submodule(self.time_linear)
        assert isinstance(linear, nn.Linear)
        return linear

    folds_numbers: ClassVar[bool] = True
    """Whether that linear has a bias: else students take no further numbers, such as a guidance or an interval."""

    lora_targets: ClassVar[tuple[str, ...]]  # the layers that low-rank students train, by the ends of their names

    def comfyui_layer(self, name: str) -> tuple[str, int]:
        """The layer of a ComfyUI LoRA file that the denoiser's layer ``name`` is in, and which part of its outputs.

        Part 0 where the two are one. By default the name that ComfyUI and A1111 give to a UNet's layers, and ComfyUI to
        those of a transformer that it knows from diffusers.
        """
        return (f"lora_unet_{name.replace('.', '_')}" if self.denoiser_part == "unet" else f"transformer.{name}"), 0

    feature_blocks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """The lists of the denoiser's blocks, by their names in it."""

    def feature_layers(self, network: nn.Module) -> list[nn.Module]:
        """The layers whose outputs a discriminator looks at, from early to late: every fourth block and the last."""
        lists: Any = [network.get_submodule(name) for name in self.feature_blocks]
        return every_fourth([block for blocks in lists for block in blocks])

    def features(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """The outputs ``[B, C_k, h_k, w_k]`` of :meth:`feature_layers` in a :meth:`predict`; differentiable by x_t."""
        with outputs_of(self.feature_layers(network)) as found:
            self.predict(network, x_t, t, condition)
        return [as_map(self.picture_part(value, x_t, condition), x_t) for value in found]

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """The picture's share of a feature layer's output, tokens ``[B, N, D]`` or a map, where text is in it too."""
        assert isinstance(output, Tensor)
        return output

    # drawing

    def initial_noise(self, generators: Sequence[torch.Generator], size: Size | None = None) -> Tensor:
        """Unit noise float32 ``[B, C, h, w]``, one generator a picture, drawn as diffusers draws it."""
        from diffusers.utils.torch_utils import randn_tensor

        shape = (1, *self.latent_shape(size))
        rows = [randn_tensor(shape, generator=g, device=self.device, dtype=torch.float32) for g in generators]
        return torch.cat(rows)

    @abstractmethod
    def sampling_scheduler(self, num_steps: int, latent_shape: tuple[int, ...]) -> tuple[Any, Tensor]:
        """The family's diffusers scheduler with its timesteps set, and the process times (float64) of its steps.

        ``latent_shape`` is (C, h, w): some families shift the times of larger pictures more.
        """

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        null: Condition,
        *,
        num_steps: int,
        guidance: Tensor | float | None = None,
        noise: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        resolution: Size | None = None,
        network: nn.Module | None = None,
        sampler: TeacherSampler | None = None,
    ) -> Tensor:
        """Scaled latents float32 ``[B, C, h, w]``, drawn in ``num_steps`` steps of a sampler.

        Starts at ``noise``, or at noise from one generator a picture; guidance is a number or ``[B]``, None the
        teacher's default. sampler None is the family's deterministic solver. One that draws fresh noise takes it from
        the generators, which go on where the first noise ended. Raises UsageError for a sampler of another process.
        """
        if noise is None:
            if generators is None:
                raise ValueError("sample needs noise or generators")
            noise = self.initial_noise(generators, resolution)
        network = network if network is not None else self.network()
        guidance = self.default_guidance if guidance is None else guidance
        condition, null = condition.to(self.device), null.to(self.device)
        shape, x = tuple(noise.shape[1:]), noise.to(self.device, torch.float32)
        fresh = {}
        if sampler is None or sampler.is_own:
            scheduler, times = self.sampling_scheduler(num_steps, shape)
        else:
            scheduler, times = sampler.steps(self, num_steps, shape)
            x = x * getattr(scheduler, "init_noise_sigma", 1.0)
            fresh = sampler.noise_from(generators)
        scaled = getattr(scheduler, "scale_model_input", lambda x, timestep: x)
        with self.same_text(network):
            for timestep, t in zip(scheduler.timesteps, times, strict=True):
                prediction = self.guided(network, scaled(x, timestep), t.expand(len(x)), condition, null, guidance)
                x = scheduler.step(prediction, timestep, x, return_dict=False, **fresh)[0]
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
            shared_parts=self.stored_parts,
            denoiser_part=self.denoiser_part,
            network=network,
            dtype=dtype,
            scheduler=self.own_scheduler() if sampler == "own" else self.student_scheduler(sampler),
            settings=None if sampler == "own" else self.student_settings,
        )

    student_settings: ClassVar[Mapping[str, Any]] = {}
    """What a student's ``model_index.json`` says beside its parts: for pipelines that ask whether a model is one."""

    def facts(self, resolution: int | None = None) -> dict[str, Any]:
        """What the record of a student, run.json, says of its teacher."""
        return {
            "teacher_source": self.source,
            "teacher_revision": self.revision,
            "teacher_licence": self.licence,
            "prediction": self.prediction,
            "teacher_fingerprint": self.fingerprint(resolution),
            "resolution": resolution or self.default_resolution,
        }

    def own_scheduler(self) -> Any:
        """The diffusers scheduler that the pipeline came with."""
        import diffusers

        kind = getattr(diffusers, self.source_info.index["scheduler"][1])
        return kind.from_pretrained(self.folder / "scheduler", local_files_only=True)
