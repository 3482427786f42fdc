"""Conditions as batches: padding, joining, choosing rows."""

from __future__ import annotations

import pytest
import torch

from ddx.teachers.condition import Condition


def condition(rows: int, length: int, width: int = 3) -> Condition:
    return Condition(torch.randn(rows, length, width), torch.ones(rows, length, dtype=torch.bool))


def test_cat_pads_to_the_longest_and_keeps_every_token() -> None:
    short, long = condition(2, 3), condition(1, 5)
    both = Condition.cat([short, long])
    assert both.tokens.shape == (3, 5, 3) and both.lengths.tolist() == [3, 3, 5]
    assert torch.equal(both.tokens[:2, :3], short.tokens) and torch.equal(both.tokens[2:], long.tokens)
    assert not both.tokens[:2, 3:].any()


def test_expand_and_index() -> None:
    one = condition(1, 4)
    assert len(one.expand(7)) == 7 and torch.equal(one.expand(7).tokens[6], one.tokens[0])
    batch = condition(4, 2)
    assert torch.equal(batch.index(-1).tokens, batch.tokens[3:]) and len(batch.index(2)) == 1
    assert torch.equal(batch.index([2, 0]).tokens, batch.tokens[[2, 0]])
    with pytest.raises(ValueError, match="only a condition of one row"):
        batch.expand(8)


def test_a_float_mask_and_mixed_pooled_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="bool mask"):
        Condition(torch.randn(1, 2, 3), torch.ones(1, 2))
    pooled = Condition(torch.randn(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.randn(1, 4))
    with pytest.raises(ValueError, match="with and without"):
        Condition.cat([pooled, condition(1, 2)])


def test_lengths_are_known_on_the_host_wherever_the_tokens_are() -> None:
    mask = torch.arange(5) < torch.tensor([2, 5, 1])[:, None]
    there = Condition(torch.zeros(3, 5, 4), mask).to("meta")
    assert there.row_lengths() == (2, 5, 1) and there.pad(7).row_lengths() == (2, 5, 1)
    assert there.index(slice(1, 3)).row_lengths() == (5, 1) and there.index(0).expand(2).row_lengths() == (2, 2)
    assert Condition.cat([there, there.index(1)]).with_sizes(None).row_lengths() == (2, 5, 1, 5)
