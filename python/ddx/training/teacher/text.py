"""The text side of a small SANA: a byte-level BPE tokenizer and a Gemma-2 encoder that is trained with the network.

SanaPipeline puts a long constant instruction before every prompt (not before the negative one), runs all of it
through the causal encoder, and keeps the first token and those of the prompt. So the instruction's keys and values
are the same for all rows: they are computed once a step and shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from ddx.teachers.families.sana_text import cache_argument, pipeline_defaults

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def new_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on captions and the pipeline's instruction; it opens with <bos> and pads on the right."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    instruction = pipeline_defaults()[0]
    # The captions come with the instruction's end before them, as the encoder meets them.
    tokenizer.train_from_iterator([*(f"User Prompt: {caption}" for caption in captions), instruction], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def new_text_encoder(vocab_size: int, width: int, layers: int) -> Gemma2Model:
    """Return an untrained Gemma-2 of the given width; heads are 32 wide, two query heads share one key head."""
    heads = width // 32
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=1024,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
        dtype="float32",
    )
    return Gemma2Model(config)


@dataclass(frozen=True)
class TokenisedCaptions:
    """Captions behind their common prefix: prefix [P]; ids and mask [N, L], mask true on real tokens."""

    prefix: Tensor
    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> TokenisedCaptions:
        """Return the same captions on `device`."""
        return TokenisedCaptions(self.prefix.to(device), self.ids.to(device), self.mask.to(device))

    def rows(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask of some rows, cut to the longest of them."""
        mask = self.mask[chosen]
        longest = int(mask.sum(dim=1).max())
        return self.ids[chosen, :longest], mask[:, :longest]


def tokenise(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> TokenisedCaptions:
    """Split instruction + caption as the pipeline does: what it drops (but <bos>) is the prefix, the rest is kept."""
    instruction = pipeline_defaults()[0]
    # The pipeline keeps <bos> and the positions from this one on; a space at the end joins the caption's first word.
    first_kept = len(tokenizer.encode(instruction)) - 1
    rows = tokenizer([instruction + caption for caption in captions])["input_ids"]
    prefix = rows[0][:first_kept]
    if any(row[:first_kept] != prefix for row in rows):
        raise ValueError("captions change the tokens of the instruction before them")
    longest = max(map(len, rows)) - first_kept
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        kept = torch.tensor(row[first_kept:])
        ids[index, : len(kept)] = kept
        mask[index, : len(kept)] = True
    return TokenisedCaptions(torch.tensor(prefix), ids, mask)


def encode_captions(encoder: Gemma2Model, prefix: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens [B, 1 + L, D] and their mask [B, 1 + L] as SanaPipeline.encode_prompt keeps them, unpadded.

    The first token is <bos>, which alone is the null condition: causal, it is the same in every row.
    """
    rows = len(ids)
    cache = DynamicCache()
    behind: dict[str, Any] = {cache_argument(encoder): cache, "use_cache": True}
    head = encoder(input_ids=prefix[None], **behind)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    ones = torch.ones(rows, len(prefix), dtype=mask.dtype, device=mask.device)
    body = encoder(
        input_ids=ids,
        attention_mask=torch.cat([ones, mask], dim=1).long(),
        **behind,
    )
    first = head.last_hidden_state[:, :1].expand(rows, -1, -1)
    tokens = torch.cat([first, body.last_hidden_state], dim=1)
    return tokens, torch.cat([ones[:, :1], mask], dim=1)


@torch.no_grad()
def encode_all(encoder: Gemma2Model, captions: TokenisedCaptions, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
    """Return tokens [N, 1 + L, D] and mask [N, 1 + L] of all captions, padded to the longest."""
    chunks = [
        encode_captions(encoder, captions.prefix, ids, mask)
        for ids, mask in zip(captions.ids.split(batch_size), captions.mask.split(batch_size), strict=True)
    ]
    tokens, masks = zip(*chunks, strict=True)
    return torch.cat(tokens), torch.cat(masks)
