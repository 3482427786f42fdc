"""Weights of the metrics' networks, random: Inception at its full size, the others tiny."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from scorers import make_scorer


def make_inception(path: Path) -> Path:
    """Write torch-fidelity's Inception with random weights to a file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]
        """The network as it is before its weights are read."""

        def load_state_dict(self, state: Any, *arguments: Any, **named: Any) -> Any:
            return None

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Untrained("untrained", ["2048"], feature_extractor_weights_path=empty)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):  # so that the signal keeps its size through all the layers
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(model.state_dict(), path)
    return path


def make_dino(folder: Path) -> Path:
    """Write a tiny DINOv2 with random weights."""
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Dinov2Model(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def make_clip(folder: Path) -> Path:
    """Write a tiny CLIP with random weights, its tokenizer and image processor."""
    return make_scorer(folder)
