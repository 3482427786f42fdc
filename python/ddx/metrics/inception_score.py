"""The Inception score (Salimans et al. 2016, arXiv:1606.03498): how sure and how varied the classes of pictures are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from ddx.metrics.bootstrap import Estimate

SPLITS = 10


def inception_score(logits: NDArray[np.floating], splits: int = SPLITS, seed: int | None = 0) -> Estimate:
    """Return exp E KL(p(y|x) ‖ p(y)), the mean over `splits` parts of the pictures; its error is their deviation.

    logits: `[N, classes]`, without the last layer's bias. seed: of the order before the split; None keeps it.
    """
    logits = np.asarray(logits, np.float64)
    if seed is not None:
        logits = np.random.default_rng(seed).permutation(logits)
    splits = min(splits, len(logits))
    scores = []
    for part in range(splits):  # these bounds are the peers'
        log_p = log_softmax(logits[part * len(logits) // splits : (part + 1) * len(logits) // splits], axis=1)
        p = np.exp(log_p)
        divergence = (p * (log_p - np.log(p.mean(axis=0, keepdims=True)))).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return Estimate(value=float(np.mean(scores)), error=float(np.std(scores)) if splits > 1 else None)
