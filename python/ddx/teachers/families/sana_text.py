"""Gemma prompt encoding for SANA, equal to ``SanaPipeline.encode_prompt`` and many times cheaper.

The pipeline puts a constant instruction of hundreds of tokens before every caption, and pads everything to one
length. Gemma is causal: the instruction's keys and values do not depend on what follows, so they are computed
once, and only a caption's own tokens run. Padding comes after the real tokens, so it changes nothing either.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.teachers.condition import Condition
from ddx.teachers.parts.batches import by_length

LENGTH_STEP = 8  # of the padded lengths; another step would change the last bits of embeddings in existing stores


@functools.cache
def pipeline_defaults() -> tuple[str, int]:
    """The instruction (one string) and the maximal caption length that ``SanaPipeline.__call__`` uses by default.

    They are read off the source of the installed pipeline: importing it takes seconds, for two constants.
    """
    diffusers = importlib.util.find_spec("diffusers")  # of a submodule it would import what is around it
    assert diffusers is not None and diffusers.origin is not None
    source = Path(diffusers.origin).parent / "pipelines" / "sana" / "pipeline_sana.py"
    defaults = _defaults_of_call(source, "SanaPipeline")
    return "\n".join(defaults["complex_human_instruction"]), int(defaults["max_sequence_length"])


def _defaults_of_call(source: Path, class_name: str) -> dict[str, Any]:
    """The defaults of a class's ``__call__`` that are literals, by parameter, without importing its module."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (pipeline,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    (call,) = (node for node in pipeline.body if isinstance(node, ast.FunctionDef) and node.name == "__call__")
    named = [argument.arg for argument in call.args.args][-len(call.args.defaults) :]
    literals = {}
    for name, value in zip(named, call.args.defaults, strict=True):
        with contextlib.suppress(ValueError):
            literals[name] = ast.literal_eval(value)
    return literals


def cache_argument(text_encoder: nn.Module) -> str:
    """The name of the forward's argument for a key-value cache: transformers ends the older one with 5.40."""
    return "cache" if "cache" in inspect.signature(text_encoder.forward).parameters else "past_key_values"


class PromptEncoder:
    """Encodes captions with one Gemma and its tokenizer; holds the instruction's key-value cache."""

    def __init__(self, tokenizer: Any, text_encoder: nn.Module, device: torch.device | None = None) -> None:
        """device: where the encoder computes (None: where its weights are)."""
        self.tokenizer = tokenizer
        self.text_encoder: Any = text_encoder
        self.device = device or next(text_encoder.parameters()).device
        self.instruction, self.max_length = pipeline_defaults()
        instruction_ids = tokenizer.encode(self.instruction)
        # The instruction ends in a space, which a tokenizer like Gemma's joins to the caption's first word; the
        # pipeline keeps that token, and the constant prefix is all before it.
        self.prefix_ids: list[int] = instruction_ids[:-1]
        self.max_total = len(instruction_ids) + self.max_length - 2
        self._prefix: tuple[Any, Tensor] | None = None
        self._cache_argument = cache_argument(text_encoder)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[Condition]:
        """Conditions of the captions with the instruction: the first token, then the caption's own."""
        texts = [self.instruction + caption for caption in preprocess(captions)]
        ids = self._tokenize(texts, self.max_total)
        num_prefix = len(self.prefix_ids)
        shared = [row[:num_prefix] == self.prefix_ids and len(row) > num_prefix for row in ids]
        short = self._hidden_states([row[num_prefix:] for row, ok in zip(ids, shared, strict=True) if ok], True)
        # A tokenizer that joins more than the space across the border leaves no common prefix: run the whole text.
        whole = self._hidden_states([row for row, ok in zip(ids, shared, strict=True) if not ok], False)
        conditions = []
        for ok in shared:
            if ok:
                conditions.append(_condition(torch.cat([self._prefix_state()[1], short.pop(0)])))
            else:
                states = whole.pop(0)
                conditions.append(_condition(torch.cat([states[:1], states[max(num_prefix, 1) :]])))
        return conditions

    @torch.no_grad()
    def encode_negative(self, text: str = "") -> Condition:
        """The condition of a negative prompt, which the pipeline encodes without the instruction."""
        ids = self._tokenize(preprocess([text]), self.max_length)
        return _condition(self._hidden_states(ids, False)[0])

    def _tokenize(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(
            list(texts), truncation=True, max_length=max_length, add_special_tokens=True
        )["input_ids"]
        return ids

    def _prefix_state(self) -> tuple[Any, Tensor]:
        """The instruction's key-value cache (one row) and the hidden state of its first token ``[1, D]``."""
        if self._prefix is None:
            from transformers import DynamicCache

            cache = DynamicCache(config=self.text_encoder.config)
            states = self._run(torch.tensor([self.prefix_ids]), cache)
            self._prefix = cache, states[0, :1].clone()
        return self._prefix

    def _hidden_states(self, ids: list[list[int]], after_prefix: bool) -> list[Tensor]:
        """Last hidden states ``[len(row), D]`` of token rows, run in groups of equal padded length."""

        def states(tokens: Tensor, mask: Tensor) -> Tensor:
            return self._run(tokens, self._prefix_cache(len(tokens)) if after_prefix else None)

        return by_length(ids, self.tokenizer.pad_token_id, states, step=LENGTH_STEP)

    def _prefix_cache(self, rows: int) -> Any:
        """A copy of the instruction's cache for a batch: a forward appends to the one that it is given."""
        cache = copy.deepcopy(self._prefix_state()[0])
        cache.batch_repeat_interleave(rows)
        return cache

    def _run(self, ids: Tensor, cache: Any | None) -> Tensor:
        """Last hidden states of `ids`, behind what the cache holds; their keys and values are appended to it."""
        behind = {} if cache is None else {self._cache_argument: cache}
        states: Tensor = self.text_encoder(ids.to(self.device), use_cache=cache is not None, **behind)[0]
        return states


def preprocess(captions: Sequence[str]) -> list[str]:
    """What the pipeline does to a caption before it is tokenised (``clean_caption`` off)."""
    return [caption.lower().strip() for caption in captions]


def _condition(states: Tensor) -> Condition:
    return Condition(states[None], torch.ones(1, len(states), dtype=torch.bool, device=states.device))
