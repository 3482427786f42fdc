"""PixArt-α and PixArt-Σ (Chen et al. 2023 and 2024): variance preserving, a transformer, a KL autoencoder, T5."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ddx.device import send
from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.parts import t5_text
from ddx.teachers.parts.batches import of_batches
from ddx.teachers.parts.vp import VPTeacher
from ddx.teachers.truncation import Cut, cut


class PixArtSigmaTeacher(VPTeacher):
    """A ``PixArtSigmaPipeline``. Its network predicts noise, and a variance that nothing reads."""

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),  # the second in the published index
        "vae": ("AutoencoderKL",),
        "text_encoder": t5_text.CLASSES["encoder"],
        "tokenizer": t5_text.CLASSES["tokenizer"],
    }
    text_width_key: ClassVar[str] = "caption_channels"
    family_guidance: ClassVar[float] = 4.5
    max_length: ClassVar[int] = 300  # tokens of a prompt, as in the pipeline's call

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`. The sizes are for PixArt-α at 1024 pixels; the other networks ignore them."""
        dtype = parameter_dtype(network)
        height, width = (side * self.compression for side in x_t.shape[2:])
        sizes = send(torch.tensor([[height, width, height / width]], dtype=dtype), x_t.device).expand(len(x_t), -1)
        with self._products(dtype):
            output: Tensor = network(
                x_t.to(dtype),
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                encoder_attention_mask=condition.mask.to(x_t.device),
                timestep=self.timesteps(t, x_t),
                added_cond_kwargs={"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]},
                return_dict=False,
            )[0]
        return output[:, : x_t.shape[1]].float()

    @of_batches
    def encode_text(self, texts: list[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: lower-cased, without the padding, which neither network attends to."""
        given = [prepared(text) for text in texts]
        states, mask = t5_text.t5_states(
            self.tokenizer(), self.text_encoder(), given, self.max_length, self.device, masked=True
        )
        rows = zip(states, mask.sum(dim=1).tolist(), strict=True)
        return [Condition(row[None, :length].clone(), mask.new_ones(1, length)) for row, length in rows]

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`."""
        return cut(self.tokenizer(), prepared(text), self.max_length - 1)

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        return {"max_sequence_length": self.max_length}

    time_linear: ClassVar[str] = "adaln_single.emb.timestep_embedder.linear_2"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class PixArtAlphaTeacher(PixArtSigmaTeacher):
    """A ``PixArtAlphaPipeline``: shorter prompts, and at 1024 pixels a network that knows the picture's size."""

    max_length: ClassVar[int] = 120


def prepared(text: str) -> str:
    """What the pipeline does to a prompt before it is tokenised (``clean_caption`` off)."""
    return text.lower().strip()
