"""Text embeddings in one byte a value: float8 e4m3 with one scale a caption."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddx.data.layout import Array

# Micikevicius et al., "FP8 formats for deep learning", 2022: four bits of exponent, three of mantissa, no infinities.
LARGEST = 448.0
MAX_ERROR = 0.01


def to_float8(tokens: Array) -> tuple[Array, float]:
    """Codes uint8 `[L, D]` of finite tokens, and the number that they are multiplied with; its largest value is kept.

    Text encoders end in a norm, so that tokens of one caption are alike in size; the values of one token are not, which
    is why an exponent in each of them costs less than a scale a token and eight bits of mantissa.
    """
    values = torch.from_numpy(np.ascontiguousarray(tokens, np.float32))
    scale = float(values.abs().max()) / LARGEST or 1.0
    codes = (values / scale).to(torch.float8_e4m3fn).view(torch.uint8)
    return codes.numpy(), float(np.float32(scale))


def from_float8(codes: Tensor, scales: Tensor) -> Tensor:
    """Tokens, float16 `[..., L, D]`, of uint8 codes and one scale a caption, float32 `[...]`."""
    values = codes.view(torch.float8_e4m3fn).float() * scales[..., None, None]
    return values.half()


def float8_error(tokens: Array, codes: Array, scale: float) -> float:
    """One minus the cosine between a token and what is stored of it: that of the worst token."""
    stored = from_float8(torch.from_numpy(codes), torch.tensor(scale)).double()
    cosine = torch.cosine_similarity(torch.from_numpy(tokens).double(), stored, dim=-1)
    return float(1 - cosine.min())
