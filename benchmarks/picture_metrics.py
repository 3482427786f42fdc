"""Metrics of pictures on made features: ours beside torch-fidelity, clean-fid, torchmetrics, pytorch-fid and prdc.

Writes what each peer says of each set, which `tests/python/metrics` holds ours to, and the largest difference.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from _environment import machine, write_result
from _feature_sets import FeatureSet, feature_sets
from _peers import need

from ddx.metrics.frechet import distance_of, fit
from ddx.metrics.inception_score import inception_score
from ddx.metrics.kernel_distance import cmmd, polynomial_mmd
from ddx.metrics.precision_recall import manifolds

GOAL = 1e-4  # of the value, or of 1 where it is smaller


class Given(torch.nn.Module):
    """Stands where torchmetrics wants a network: what comes in are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def ours(features: FeatureSet) -> dict[str, float]:
    """Return our values by metric."""
    k3, k5 = (manifolds(features.reference, features.drawn, k).estimates(resamples=0) for k in (3, 5))
    return {
        "fid": distance_of(fit(features.reference), fit(features.drawn)),
        "kid": polynomial_mmd(features.reference, features.drawn),
        "inception_score": inception_score(features.logits, seed=None).value,
        "inception_score of one part": inception_score(features.logits, splits=1).value,
        "precision": k3["precision"].value,
        "recall": k3["recall"].value,
        "density": k5["density"].value,
        "coverage": k5["coverage"].value,
        "cmmd": cmmd(features.reference, features.drawn, resamples=0).value,
    }


def peers(features: FeatureSet) -> dict[str, dict[str, float]]:
    """Return the peers' values by metric and peer."""
    import prdc
    import torch_fidelity.metric_fid as tf_fid
    from cleanfid import fid as clean
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    from torchmetrics.image import FrechetInceptionDistance, InceptionScore
    from torchmetrics.image.kid import poly_mmd

    reference, drawn, logits = (
        torch.from_numpy(values.astype(np.float64)) for values in (features.reference, features.drawn, features.logits)
    )
    means = [values.numpy().mean(0) for values in (reference, drawn)]
    covariances = [np.cov(values.numpy(), rowvar=False) for values in (reference, drawn)]
    found: dict[str, dict[str, float]] = {
        "fid": {
            "pytorch-fid": calculate_frechet_distance(means[0], covariances[0], means[1], covariances[1]),
            "clean-fid": clean.frechet_distance(means[0], covariances[0], means[1], covariances[1]),
            "torch-fidelity": tf_fid.fid_statistics_to_metric(
                tf_fid.fid_features_to_statistics(reference), tf_fid.fid_features_to_statistics(drawn), False
            )["frechet_inception_distance"],
        }
    }
    metric = FrechetInceptionDistance(feature=Given(reference.shape[1]), input_img_size=(1,)).set_dtype(torch.float64)
    metric.inception.num_features = reference.shape[1]
    metric.update(reference, real=True), metric.update(drawn, real=False)
    found["fid"]["torchmetrics"] = float(metric.compute())

    least = min(len(reference), len(drawn))
    if len(reference) == len(drawn):  # a subset that is everything, so that no two draws differ
        settings = {"kid_subsets": 1, "kid_subset_size": least, "verbose": False}
        found["kid"] = {
            "torch-fidelity": kid_features_to_metric(drawn, reference, **settings)["kernel_inception_distance_mean"],
            "torchmetrics": float(poly_mmd(reference, drawn)),
            "clean-fid": clean.kernel_distance(reference.numpy(), drawn.numpy(), 1, least),
        }
    score = InceptionScore(feature=Given(20), splits=1)  # its order is random, so one part
    score.features.append(logits)
    found["inception_score"] = {"torch-fidelity": isc_features_to_metric(logits, shuffle=False)["inception_score_mean"]}
    found["inception_score of one part"] = {"torchmetrics": float(score.compute()[0])}
    prc = prc_features_to_metric(drawn, reference, verbose=False)
    k3, k5 = (prdc.compute_prdc(reference.numpy(), drawn.numpy(), nearest_k=k) for k in (3, 5))
    found["precision"] = {"torch-fidelity": prc["precision"], "prdc": k3["precision"]}
    found["recall"] = {"torch-fidelity": prc["recall"], "prdc": k3["recall"]}
    found["density"], found["coverage"] = {"prdc": k5["density"]}, {"prdc": k5["coverage"]}
    return {name: {peer: float(value) for peer, value in values.items()} for name, values in found.items()}


def main(write: Callable[..., Any] = write_result) -> None:
    """Compare, print and write the result."""
    need("torch_fidelity", "torchmetrics", "cleanfid", "pytorch_fid", "prdc")
    os.environ["LOKY_MAX_CPU_COUNT"] = "1"
    environment, sets, worst = machine(), {}, {}
    for features in feature_sets():
        with contextlib.redirect_stdout(io.StringIO()):  # prdc prints what it counts
            theirs = peers(features)
        mine = ours(features)
        sets[features.name] = {"ddx": mine, "peers": theirs}
        for name, values in theirs.items():
            for peer, value in values.items():
                far = abs(value - mine[name]) / max(1.0, abs(value))
                worst[f"{name}, {peer}"] = max(far, worst.get(f"{name}, {peer}", 0.0))
    for name, far in worst.items():
        print(f"{name:32} {far:.1e}{'' if far <= GOAL else '  ABOVE THE GOAL'}")
    write("picture_metrics", {"goal": GOAL, "largest difference": worst, "sets": sets}, environment)


if __name__ == "__main__":
    main()
