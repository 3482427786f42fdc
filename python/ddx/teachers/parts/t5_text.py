"""T5 text encoders: PixArt tells the encoder about the padding, Stable Diffusion 3 and FLUX let it attend to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLASSES = {"encoder": ("T5EncoderModel",), "tokenizer": ("T5Tokenizer", "T5TokenizerFast")}


def t5_states(
    tokenizer: Any, encoder: Any, texts: list[str], length: int, device: torch.device, *, masked: bool
) -> tuple[Tensor, Tensor]:
    """Return the last states ``[B, length, D]``, padding included, and the mask ``[B, length]`` of the real tokens.

    masked: whether the encoder is told which tokens are padding; the states of the real ones depend on it.
    """
    found = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = found.attention_mask.to(device)
    states: Tensor = encoder(found.input_ids.to(device), attention_mask=mask if masked else None)[0]
    return states, mask.bool()
