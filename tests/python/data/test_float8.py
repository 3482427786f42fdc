"""Text embeddings in eight bits: half the size, and what that costs is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from ddx.data.config import PrecomputeConfig
from ddx.data.float8 import float8_error, from_float8, to_float8
from ddx.data.loader import Loader
from ddx.data.precompute import precompute
from ddx.data.precompute.encode import Text, in_float8
from ddx.data.store import Store
from stores import shard_bytes


def test_half_a_mantissa_turns_no_token_by_more_than_a_hundredth() -> None:
    random = np.random.default_rng(0)
    channels = np.exp(1.5 * random.standard_normal(512))  # some are a hundred times as large as others
    tokens = (random.standard_normal((40, 512)) * channels).astype(np.float16)
    codes, scale = to_float8(tokens)
    assert (codes.dtype, codes.shape) == (np.uint8, tokens.shape)
    stored = from_float8(torch.from_numpy(codes), torch.tensor(scale)).double().numpy()
    assert stored.max() == tokens.max() or stored.min() == tokens.min()
    large = np.abs(tokens) > np.abs(tokens).max() * 2.0**-14
    relative = np.abs(stored - tokens)[large] / np.abs(tokens)[large]
    assert relative.max() < 2.0**-4 + 1e-3  # three bits of mantissa and rounding
    cosine = (stored * tokens).sum(1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(tokens.astype(float), axis=1)
    assert float8_error(tokens, codes, scale) == pytest.approx(1 - cosine.min(), rel=1e-3)
    assert 0 < 1 - cosine.min() < 0.002


def test_a_caption_that_eight_bits_would_turn_fails() -> None:
    tokens = np.ones((2, 8), np.float16)
    tokens[1] *= np.float16(2e-7)  # beside ones it vanishes
    assert in_float8(Text(tokens, None)) == "float8_error"
    assert isinstance(in_float8(Text(tokens[:1], None)), Text)


@pytest.fixture(scope="module")
def config(teacher_folder: Path) -> PrecomputeConfig:
    return PrecomputeConfig(teacher=str(teacher_folder), device="cpu", part_rows=4, batch_size=3, text_dtype="float8")


def test_a_store_in_eight_bits_gives_what_the_other_gives(
    config: PrecomputeConfig, pairs: Path, tmp_path: Path
) -> None:
    plain = Store(precompute(replace(config, out=tmp_path / "16.zarr", text_dtype="float16"), [str(pairs)]))
    small = Store(precompute(replace(config, out=tmp_path / "8.zarr"), [str(pairs)]))
    assert small.array("text/tokens").dtype == np.uint8
    assert zarr.open_array(str(small.path), path="text/tokens").attrs["encoding"] == "float8_e4m3fn"
    assert small.array("text/scale").shape == small.array("text/length").shape
    first, second = Loader(plain, 5, seed=2), Loader(small, 5, seed=2)
    for _ in range(6):
        one, other = next(first), next(second)
        assert torch.equal(one.rows, other.rows) and torch.equal(one.latents, other.latents)
        assert torch.equal(one.condition.mask, other.condition.mask)
        assert other.condition.tokens.dtype == torch.float16
        assert not other.condition.tokens[~other.condition.mask].any()
        inside = one.condition.mask
        cosine = torch.cosine_similarity(
            one.condition.tokens[inside].double(), other.condition.tokens[inside].double(), dim=-1
        )
        assert 0 < 1 - cosine.min() < 0.01
    errors = small.summary()["text_error"]
    assert 0 < errors["mean"] <= errors["largest"] < 0.01
    assert small.null_condition().tokens.equal(plain.null_condition().tokens), "there is one of it: it stays as it is"


def test_rows_of_several_captions_and_rows_taken_up_again_keep_their_scales(
    config: PrecomputeConfig, pairs: Path, tmp_path: Path
) -> None:
    twice = replace(config, caption_column=("caption", "caption"))
    whole = precompute(replace(twice, out=tmp_path / "whole.zarr"), [str(pairs)])
    again = precompute(replace(twice, out=tmp_path / "again.zarr"), [str(pairs)])
    precompute(replace(twice, out=again, retry=("all",)), [str(pairs)])
    assert shard_bytes(again) == shard_bytes(whole)
    scale = Store(whole).array("text/scale")
    assert scale.shape == (14, 2) and np.array_equal(scale[:, 0], scale[:, 1])
    assert next(Loader(whole, 4, seed=0)).condition.tokens.isfinite().all()
