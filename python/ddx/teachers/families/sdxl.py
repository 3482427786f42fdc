"""Stable Diffusion XL (Podell et al. 2023): variance preserving, a UNet that knows sizes, two CLIP encoders."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ddx.device import send
from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.families.stable_diffusion import StableDiffusionTeacher
from ddx.teachers.parts.batches import of_batches, whole_rows
from ddx.teachers.parts.clip_text import penultimate


class SDXLTeacher(StableDiffusionTeacher):
    """A ``StableDiffusionXLPipeline``. Without other sizes its UNet is told of the picture's own, uncropped."""

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }
    left_out: ClassVar[tuple[str, ...]] = ("feature_extractor", "image_encoder")
    family_guidance: ClassVar[float] = 5.0
    takes_sizes: ClassVar[bool] = True

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`."""
        dtype = parameter_dtype(network)
        assert condition.pooled is not None
        height, width = (side * self.compression for side in x_t.shape[2:])
        sizes = send(torch.tensor([[height, width, 0, 0, height, width]], dtype=dtype), x_t.device)
        sizes = sizes.expand(len(x_t), -1)
        if condition.sizes is not None:
            sizes = torch.cat([condition.sizes.to(device=x_t.device, dtype=dtype), sizes[:, 4:]], dim=1)
        with self._products(dtype):
            output: Tensor = network(
                x_t.to(dtype),
                self.timesteps(t, x_t),
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                added_cond_kwargs={
                    "text_embeds": condition.pooled.to(device=x_t.device, dtype=dtype),
                    "time_ids": sizes,
                },
                return_dict=False,
            )[0]
        return output.float()

    @of_batches
    def encode_text(self, texts: list[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: both encoders' tokens side by side, and the second one's pooled output."""
        first, _ = penultimate(self.tokenizer(), self.text_encoder(), texts, self.device)
        encoder = self.text_encoder("text_encoder_2")
        second, pooled = penultimate(self.tokenizer("tokenizer_2"), encoder, texts, self.device)
        return whole_rows(torch.cat([first, second], dim=-1), pooled)

    def null_condition(self) -> Condition:
        """Zeros where the pipeline's config says so, as that of the published models does; else the empty prompt."""
        empty = self.encode_text([""])[0]
        if not self.source_info.index.get("force_zeros_for_empty_prompt", True):
            return empty
        assert empty.pooled is not None
        return Condition(torch.zeros_like(empty.tokens), empty.mask, torch.zeros_like(empty.pooled))

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        zeros = bool(self.source_info.index.get("force_zeros_for_empty_prompt", True))
        return {**super()._text_fingerprint(), "zeros_for_null": zeros}
