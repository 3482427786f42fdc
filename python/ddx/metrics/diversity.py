"""How different the pictures of one prompt are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def prompt_variance(features: NDArray[np.float64], num_seeds: int) -> float:
    """Return the variance over the seeds of one prompt, summed over the features, averaged over the prompts.

    features: `[num_prompts * num_seeds, D]`, the seeds of a prompt next to each other. A student's value over its
    teacher's is its relative diversity: under 1 it draws the same picture again and again.
    """
    grouped = features.reshape(-1, num_seeds, features.shape[-1])
    return float(grouped.var(axis=1, ddof=1).sum(axis=-1).mean())
