"""Chat models as text encoders: the prompt is a user's turn in the template that the tokenizer carries."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddx.teachers.truncation import Cut, cut


@dataclass(frozen=True, kw_only=True)
class ChatText:
    """A tokenizer with a chat template.

    thinking: what the template is told; without, Qwen3's closes an empty thought before the answer. limit: the most
    tokens of a turn that are read.
    """

    tokenizer: Any
    thinking: bool
    limit: int = 512

    def turn(self, text: str) -> str:
        """Return the text as a user's turn, up to where the answer would begin."""
        turn: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinking,
        )
        return turn

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text's turn, cut at the limit."""
        turns = [self.turn(text) for text in texts]
        ids: list[list[int]] = self.tokenizer(turns, truncation=True, max_length=self.limit)["input_ids"]
        return ids

    def padded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids and the mask of the real ones, both ``[B, limit]``, padded as the tokenizer pads."""
        turns = [self.turn(text) for text in texts]
        found = self.tokenizer(turns, padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt")
        return found.input_ids, found.attention_mask.bool()

    def cut(self, text: str) -> Cut | None:
        """Return what is not read of a text that is too long, None where all of it is."""
        before, num_before = self._before
        return cut(self.tokenizer, before + text, self.limit, num_before)

    @functools.cached_property
    def _before(self) -> tuple[str, int]:
        """What the template puts in front of a text, and how many tokens that is."""
        mark = "\N{OBJECT REPLACEMENT CHARACTER}"
        before = self.turn(mark).partition(mark)[0]
        return before, len(self.tokenizer.encode(before, add_special_tokens=False))


def hidden_states(encoder: Any, ids: Tensor, mask: Tensor, layers: Sequence[int], *, device: torch.device) -> Tensor:
    """Return the hidden states ``[B, L, D]`` of some layers side by side; 0 is the embedding, -1 the normed output.

    Of a model for language, its body alone runs: the logits of all tokens would need more memory than all else.
    device: where it computes; its weights may wait elsewhere.
    """
    found = encoder.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
    return torch.cat([found.hidden_states[layer] for layer in layers], dim=-1)
