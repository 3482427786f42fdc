"""CLIP text encoders: SDXL and Stable Diffusion 3 read the states before the last layer too, FLUX.1 a pooled one."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def penultimate(tokenizer: Any, encoder: Any, texts: list[str], device: Any) -> tuple[Tensor, Tensor]:
    """Return tokens ``[B, 77, D]``, padding included, and the encoder's pooled output ``[B, P]``."""
    found = encoder(_ids(tokenizer, texts).to(device), output_hidden_states=True)
    return found.hidden_states[-2], found[0]


def pooled(tokenizer: Any, encoder: Any, texts: list[str], device: Any) -> Tensor:
    """Return the state ``[B, D]`` of the end token."""
    state: Tensor = encoder(_ids(tokenizer, texts).to(device)).pooler_output
    return state


def _ids(tokenizer: Any, texts: list[str]) -> Tensor:
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
