"""Z-Image (Z-Image Team 2025): flow matching, one stream of picture and text, FLUX's autoencoder, Qwen3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.families.next_dit_names import Z_IMAGE
from ddx.teachers.parts.batches import by_length
from ddx.teachers.parts.chat_text import ChatText, hidden_states
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.truncation import Cut


class ZImageTeacher(FlowTeacher):
    """A ``ZImagePipeline``.

    Its network's time is 0 at noise and 1 at the picture, and its output the velocity of that time. The pipeline's
    ``guidance_scale`` is one less than ours.
    """

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("ZImageTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }
    text_width_key: ClassVar[str] = "cap_feat_dim"
    family_guidance: ClassVar[float] = 6.0  # the pipeline's 5

    @property
    def patch_size(self) -> int:
        """The patch that the pipeline draws with; the network may know others."""
        return 2

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`. The network takes pictures and texts as lists."""
        dtype = parameter_dtype(network)
        num_train = self.process.num_train_timesteps
        tokens = condition.tokens.to(device=x_t.device, dtype=dtype)
        with self._products(dtype):
            output = network(
                list(x_t.to(dtype).unsqueeze(2).unbind()),
                (num_train - self.times(num_train * t, x_t)) / num_train,  # rounded as the pipeline's
                [row[:length] for row, length in zip(tokens, condition.row_lengths(), strict=True)],
                return_dict=False,
            )[0]
        return -torch.stack([picture.float() for picture in output]).squeeze(2)

    def combine(self, uncond: Tensor, cond: Tensor, scale: Tensor | float) -> Tensor:
        """See :meth:`Teacher.combine`: rounded as the pipeline's."""
        return cond + (scale - 1.0) * (cond - uncond)

    @property
    def _chat(self) -> ChatText:
        chat: ChatText = self._once("chat", lambda: ChatText(tokenizer=self.tokenizer(), thinking=True))
        return chat

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: the states before the last layer, the template's among them."""
        chat, encoder = self._chat, self.text_encoder()
        with self._products(self.text_dtype):
            rows = by_length(
                chat.ids(prompts),
                chat.tokenizer.pad_token_id,
                lambda ids, mask: hidden_states(encoder, ids, mask, layers=(-2,), device=self.device),
            )
        return [Condition(row[None], torch.ones(1, len(row), dtype=torch.bool, device=row.device)) for row in rows]

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`."""
        return self._chat.cut(text)

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        return {"max_sequence_length": self._chat.limit}

    time_linear: ClassVar[str] = "t_embedder.mlp.2"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")

    def comfyui_layer(self, name: str) -> tuple[str, int]:
        """See :meth:`Teacher.comfyui_layer`."""
        return Z_IMAGE.comfyui_layer(name)

    feature_blocks: ClassVar[tuple[str, ...]] = ("layers",)

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.picture_part`: the picture comes first, filled up to a multiple of 32 tokens."""
        tokens: Tensor = output[:, : self.image_tokens(tuple(x_t.shape[1:]))]
        return tokens
