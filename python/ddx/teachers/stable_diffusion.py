"""Stable Diffusion 1 and 2 (Rombach et al. 2022): variance preserving, a UNet, a KL autoencoder, CLIP text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.errors import DdxError
from ddx.process import PredictionKind
from ddx.teachers.base import Sampler, Teacher
from ddx.teachers.betas import vp_process
from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.hub import read_json

_KINDS: dict[str, PredictionKind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

# Keys that the schedulers of diffusers share; the rest is each sampler's own.
_TABLE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)

ROWS = 8  # prompts are encoded in batches of one shape, so that an embedding does not depend on its neighbours


class StableDiffusionTeacher(Teacher):
    """A ``StableDiffusionPipeline``; noise or v prediction as its scheduler's config says."""

    family: ClassVar[str] = "stable-diffusion"
    denoiser_part: ClassVar[str] = "unet"
    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }
    family_guidance: ClassVar[float] = 7.5

    def __init__(self, source: Any, **options: Any) -> None:
        super().__init__(source, **options)
        config = read_json(source.folder / "scheduler" / "scheduler_config.json")
        self.table = {key: config[key] for key in _TABLE_KEYS if config.get(key) is not None}
        kind = self.table.setdefault("prediction_type", "epsilon")
        if kind not in _KINDS:
            raise DdxError(f"{self.name} predicts {kind!r}", hint=f"ddx knows {', '.join(_KINDS)}")
        self.prediction = _KINDS[kind]
        process = vp_process(self.table)
        if process.zero_terminal_snr and self.prediction == "eps":
            raise DdxError(
                f"{self.name} predicts noise on a table of zero terminal SNR, where noise says nothing",
                hint="a table with rescale_betas_zero_snr needs prediction_type v_prediction or sample",
            )
        self.process = process

    @property
    def compression(self) -> int:
        """8 for the published autoencoders."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @property
    def resolution_multiple(self) -> int:
        """The UNet halves the latents between its levels."""
        return self.compression * int(2 ** (len(self.denoiser_config["block_out_channels"]) - 1))

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`. CLIP's padding is part of the condition, so there is no mask to give."""
        dtype = parameter_dtype(network)
        with self._products(dtype):
            output: Tensor = network(
                x_t.to(dtype),
                self.process.model_time(t).expand(len(x_t)).to(device=x_t.device, dtype=torch.float32),
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                return_dict=False,
            )[0]
        return output.float()

    has_posterior = True

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        vae: Any = self.vae()
        posterior = vae.encode(pixels, return_dict=False)[0]
        return posterior.mode(), posterior.logvar

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`. All 77 positions are kept: the UNet attends to the padding too."""
        tokenizer, encoder = self.tokenizer(), self.text_encoder()
        conditions: list[Condition] = []
        for start in range(0, len(prompts), ROWS):
            texts = list(prompts[start : start + ROWS])
            num = len(texts)
            texts += [texts[-1]] * (ROWS - num)
            inputs = tokenizer(
                texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            )
            mask = inputs.attention_mask.to(self.device) if self.text_config.get("use_attention_mask") else None
            with self._products(self.text_dtype):
                tokens = encoder(inputs.input_ids.to(self.device), attention_mask=mask)[0]
            real = torch.ones(1, tokens.shape[1], dtype=torch.bool, device=tokens.device)
            conditions += [Condition(tokens[row : row + 1].clone(), real) for row in range(num)]
        return conditions

    def null_condition(self) -> Condition:
        """The empty prompt, encoded as any other."""
        return self.encode_text([""])[0]

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        return {"max_sequence_length": int(self.text_config.get("max_position_embeddings", 77)), "posterior": "mode"}

    def time_embedding_linear(self, network: nn.Module) -> nn.Linear:
        """``time_embedding.linear_2``."""
        linear = network.get_submodule("time_embedding.linear_2")
        assert isinstance(linear, nn.Linear)
        return linear

    def sampling_scheduler(self, num_steps: int) -> tuple[Any, Tensor]:
        """DDIM without noise from the last timestep down to the clean image.

        Trailing spacing starts where the noise is (Lin et al. 2024); the published configs' leading spacing would
        start a one-step sample at t = 1.
        """
        scheduler = self.student_scheduler("ode")
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler, scheduler.timesteps.double()

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")

    def feature_layers(self, network: nn.Module) -> list[nn.Module]:
        """The middle block, and each block on the way up."""
        unet: Any = network
        return [unet.mid_block, *unet.up_blocks]

    def student_scheduler(self, sampler: Sampler = "consistency") -> Any:
        """Multistep consistency sampling with LCM's boundary scalings (Luo et al. 2023), or DDIM without noise."""
        from diffusers import DDIMScheduler, LCMScheduler

        if sampler == "ode":
            return DDIMScheduler(
                **self.table, clip_sample=False, set_alpha_to_one=True, steps_offset=1, timestep_spacing="trailing"
            )
        return LCMScheduler(
            **self.table,
            original_inference_steps=min(50, self.process.num_train_timesteps),
            timestep_scaling=10.0,
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=1,  # what StableDiffusionPipeline wants; this scheduler does not read it
        )
