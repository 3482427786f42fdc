"""Qwen-Image (Wu et al. 2025): flow matching, a dual-stream transformer, an autoencoder of videos, Qwen2.5-VL text."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.parts.batches import by_length
from ddx.teachers.parts.chat_text import hidden_states
from ddx.teachers.parts.exact_time import exact_time
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.parts.packing import pack, unpack
from ddx.teachers.truncation import Cut, cut


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How the pipeline reads a text: inside a template, whose first `dropped` tokens' states are not kept."""

    template: str
    dropped: int
    read: int  # tokens that the encoder reads behind those
    kept: int  # and how many of their states the denoiser gets


@functools.cache
def prompt_format() -> PromptFormat:
    """Return what the installed diffusers has."""
    from diffusers import QwenImagePipeline

    empty: Any = QwenImagePipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=None)
    return PromptFormat(
        template=empty.prompt_template_encode,
        dropped=empty.prompt_template_encode_start_idx,
        read=empty.tokenizer_max_length,
        kept=inspect.signature(QwenImagePipeline.__call__).parameters["max_sequence_length"].default,
    )


class QwenImageTeacher(FlowTeacher):
    """A ``QwenImagePipeline``. Its network takes t, and packed latents; the autoencoder sees a picture as a video."""

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("QwenImageTransformer2DModel",),
        "vae": ("AutoencoderKLQwenImage",),
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    }
    text_width_key: ClassVar[str] = "joint_attention_dim"
    family_guidance: ClassVar[float] = 4.0
    doubles_batch: ClassVar[bool] = False

    @property
    def compression(self) -> int:
        """8 for the published autoencoder."""
        return int(2 ** len(self.vae_config["temperal_downsample"]))

    @property
    def latent_channels(self) -> int:
        """The channels of the latents; a token of the denoiser has four cells of them."""
        return int(self.denoiser_config["in_channels"]) // 4

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`."""
        dtype, times = parameter_dtype(network), self.times(t, x_t)
        height, width = x_t.shape[2:]
        with self._products(dtype), exact_time(network, "time_text_embed.time_proj", times):
            output: Tensor = network(
                pack(x_t.to(dtype)),
                timestep=times,
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                encoder_hidden_states_mask=condition.mask.to(x_t.device),
                img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
                return_dict=False,
            )[0]
        return unpack(output.float(), x_t.shape)

    def combine(self, uncond: Tensor, cond: Tensor, scale: Tensor | float) -> Tensor:
        """Guidance changes the direction of each token, and keeps the length that it has with the text."""
        kept = pack(cond)
        moved = pack(super().combine(uncond, cond, scale))
        lengths = torch.norm(kept, dim=-1, keepdim=True) / torch.norm(moved, dim=-1, keepdim=True)
        return unpack(moved * lengths, cond.shape)

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, logvar = super()._encode_pixels(pixels[:, :, None])
        assert logvar is not None
        return mean[:, :, 0], logvar[:, :, 0]

    def _decode_latents(self, latents: Tensor) -> Tensor:
        return super()._decode_latents(latents[:, :, None])[:, :, 0]

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: the last states of Qwen2.5-VL behind the template's first tokens."""
        form, tokenizer = prompt_format(), self.tokenizer()
        filled = [form.template.format(prompt) for prompt in prompts]
        ids = tokenizer(filled, truncation=True, max_length=form.dropped + form.read)["input_ids"]
        rows = by_length(ids, tokenizer.pad_token_id, self._states)
        kept = [row[None, form.dropped :][:, : form.kept].clone() for row in rows]
        return [Condition(row, torch.ones(row.shape[:2], dtype=torch.bool, device=row.device)) for row in kept]

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self._products(self.text_dtype):
            return hidden_states(self.text_encoder(), ids, mask, (-1,), device=self.device)

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`."""
        form = prompt_format()
        before = form.template.partition("{}")[0]
        return cut(self.tokenizer(), before + text, form.dropped + form.kept, form.dropped)

    def null_condition(self) -> Condition:
        """A space: the pipeline takes an empty negative prompt too, but the published model is called with this."""
        return self.encode_text([" "])[0]

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        form = prompt_format()
        template = hashlib.sha256(form.template.encode()).hexdigest()[:16]
        return {"template": template, "max_sequence_length": form.kept}

    time_linear: ClassVar[str] = "time_text_embed.timestep_embedder.linear_2"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """The second of a block's two streams."""
        picture: Tensor = output[1]
        return picture
