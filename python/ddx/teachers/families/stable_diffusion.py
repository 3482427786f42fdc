"""Stable Diffusion 1 and 2 (Rombach et al. 2022): variance preserving, a UNet, a KL autoencoder, CLIP text."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.parts.batches import of_batches, whole_rows
from ddx.teachers.parts.vp import VPTeacher


class StableDiffusionTeacher(VPTeacher):
    """A ``StableDiffusionPipeline``; noise or v prediction as its scheduler's config says."""

    denoiser_part: ClassVar[str] = "unet"
    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }
    left_out: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor", "image_encoder")
    text_width_key: ClassVar[str] = "cross_attention_dim"
    family_guidance: ClassVar[float] = 7.5

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
                self.timesteps(t, x_t),
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                return_dict=False,
            )[0]
        return output.float()

    @of_batches
    def encode_text(self, texts: list[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`. All 77 positions are kept: the UNet attends to the padding too."""
        tokenizer, encoder = self.tokenizer(), self.text_encoder()
        inputs = tokenizer(
            texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        masked = self.part_config("text_encoder").get("use_attention_mask")
        mask = inputs.attention_mask.to(self.device) if masked else None
        return whole_rows(encoder(inputs.input_ids.to(self.device), attention_mask=mask)[0])

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        positions = self.part_config("text_encoder").get("max_position_embeddings", 77)
        return {"max_sequence_length": int(positions), "posterior": "mode"}

    time_linear: ClassVar[str] = "time_embedding.linear_2"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")

    def feature_layers(self, network: nn.Module) -> list[nn.Module]:
        """The middle block, and each block on the way up."""
        unet: Any = network
        return [unet.mid_block, *unet.up_blocks]
