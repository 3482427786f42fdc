"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): flow matching, two joint streams, two CLIPs and T5."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.parts import t5_text
from ddx.teachers.parts.batches import of_batches, whole_rows
from ddx.teachers.parts.clip_text import penultimate
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.truncation import Cut, cut

T5_LENGTH = 256  # tokens of a prompt, as in the pipeline's call


class StableDiffusion3Teacher(FlowTeacher):
    """A ``StableDiffusion3Pipeline``. Predicts the flow velocity; its network takes ``1000 t``."""

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModelWithProjection",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "text_encoder_3": t5_text.CLASSES["encoder"],
        "tokenizer_3": t5_text.CLASSES["tokenizer"],
    }
    left_out: ClassVar[tuple[str, ...]] = ("image_encoder", "feature_extractor")
    text_width_key: ClassVar[str] = "joint_attention_dim"
    family_guidance: ClassVar[float] = 7.0

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`. Padding is part of the condition, so there is no mask to give."""
        dtype = parameter_dtype(network)
        assert condition.pooled is not None
        with self._products(dtype):
            output: Tensor = network(
                x_t.to(dtype),
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                pooled_projections=condition.pooled.to(device=x_t.device, dtype=dtype),
                timestep=self.times(self.process.model_time(t), x_t),
                return_dict=False,
            )[0]
        return output.float()

    @of_batches
    def encode_text(self, texts: list[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: the CLIPs' tokens side by side, filled up to T5's width, and T5's behind."""
        pairs = [(self.tokenizer(f"tokenizer{n}"), self.text_encoder(f"text_encoder{n}")) for n in ("", "_2", "_3")]
        (first, pooled), (second, pooled_2) = (penultimate(*pair, texts, self.device) for pair in pairs[:2])
        states, _ = t5_text.t5_states(*pairs[2], texts, T5_LENGTH, self.device, masked=False)
        clip = torch.cat([first, second], dim=-1)
        clip = nn.functional.pad(clip, (0, states.shape[-1] - clip.shape[-1]))
        tokens, vectors = torch.cat([clip, states], dim=1), torch.cat([pooled, pooled_2], dim=-1)
        return whole_rows(tokens, vectors)

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`: what T5 does not read, for the CLIPs read less."""
        return cut(self.tokenizer("tokenizer_3"), text, T5_LENGTH - 1)

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        positions = self.part_config("text_encoder").get("max_position_embeddings", 77)
        return {"max_sequence_length": int(positions) + T5_LENGTH}

    time_linear: ClassVar[str] = "time_text_embed.timestep_embedder.linear_2"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.picture_part`: a block returns text and picture."""
        picture: Tensor = output[1]
        return picture
