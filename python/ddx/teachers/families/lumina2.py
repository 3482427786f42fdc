"""Lumina-Image 2.0 (Qin et al. 2025): flow matching, one stream of text and picture, FLUX's autoencoder, Gemma 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.families.next_dit_names import LUMINA2
from ddx.teachers.parts.batches import by_length
from ddx.teachers.parts.chat_text import hidden_states
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.truncation import Cut, cut

# Lumina2Pipeline's default, and what it puts between it and a prompt
_BEFORE = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
_LENGTH = 256  # tokens, those included


class Lumina2Teacher(FlowTeacher):
    """A ``Lumina2Pipeline``. Its network's time is 0 at noise and 1 at the picture, and its output that velocity."""

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("Lumina2Transformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("Gemma2Model", "Gemma2PreTrainedModel"),
        "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    }
    text_width_key: ClassVar[str] = "cap_feat_dim"
    family_guidance: ClassVar[float] = 4.0
    doubles_batch: ClassVar[bool] = False

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`."""
        dtype = parameter_dtype(network)
        with self._products(dtype):
            output: Tensor = network(
                hidden_states=x_t.to(dtype),
                timestep=1 - self.times(t, x_t),
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                encoder_attention_mask=condition.mask.to(x_t.device),
                return_dict=False,
            )[0]
        return -output.float()

    def combine(self, uncond: Tensor, cond: Tensor, scale: Tensor | float) -> Tensor:
        """See :meth:`Teacher.combine`: each row of cells keeps the length that it has with the text."""
        combined = super().combine(uncond, cond, scale)
        wanted: Tensor = torch.linalg.vector_norm(cond, dim=-1, keepdim=True)
        found: Tensor = torch.linalg.vector_norm(combined, dim=-1, keepdim=True)
        return combined * (wanted / found)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: behind the system prompt, whose states stay; those before the last layer."""
        return self._encode([_BEFORE + prompt for prompt in prompts])

    def _encode(self, texts: list[str]) -> list[Condition]:
        tokenizer, encoder = self.tokenizer(), self.text_encoder()
        ids = tokenizer(texts, truncation=True, max_length=_LENGTH)["input_ids"]
        with self._products(self.text_dtype):
            rows = by_length(
                ids,
                tokenizer.pad_token_id,
                lambda ids, mask: hidden_states(encoder, ids, mask, layers=(-2,), device=self.device),
            )
        return [Condition(row[None], torch.ones(1, len(row), dtype=torch.bool, device=row.device)) for row in rows]

    @torch.no_grad()
    def null_condition(self) -> Condition:
        """The empty prompt without the system prompt: one start token."""
        return self._encode([""])[0]

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`. The last token of what is in front joins the first word."""
        tokenizer = self.tokenizer()
        num_before = len(tokenizer.encode(_BEFORE, add_special_tokens=False)) - 1
        return cut(tokenizer, _BEFORE + text, _LENGTH - tokenizer.num_special_tokens_to_add(), num_before)

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        return {"max_sequence_length": _LENGTH, "system_prompt": "default"}

    time_linear: ClassVar[str] = "time_caption_embed.timestep_embedder.linear_2"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", *(f"feed_forward.linear_{number}" for number in (1, 2, 3)))

    def comfyui_layer(self, name: str) -> tuple[str, int]:
        """See :meth:`Teacher.comfyui_layer`."""
        return LUMINA2.comfyui_layer(name)

    feature_blocks: ClassVar[tuple[str, ...]] = ("layers",)

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.picture_part`: in each row it begins where that row's text ends."""
        count, lengths = self.image_tokens(tuple(x_t.shape[1:])), condition.row_lengths()
        return torch.stack([row[start : start + count] for row, start in zip(output, lengths, strict=True)])
