"""CLIP text encoders as SDXL and Stable Diffusion 3 read them: the states before the last layer, and a pooled one."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def penultimate(tokenizer: Any, encoder: Any, texts: list[str], device: Any) -> tuple[Tensor, Tensor]:
    """Return tokens ``[B, 77, D]``, padding included, and the encoder's pooled output ``[B, P]``."""
    ids = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    found = encoder(ids.to(device), output_hidden_states=True)
    return found.hidden_states[-2], found[0]
