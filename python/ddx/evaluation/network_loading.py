"""The networks that a choice of metrics needs, each loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddx.evaluation.measure_config import MeasureConfig

if TYPE_CHECKING:
    import torch

    from ddx.networks.picture_networks import PictureNetwork


def load_networks(names: Sequence[str], config: MeasureConfig, device: torch.device) -> dict[str, PictureNetwork]:
    """Return networks by name. DdxError with the command that downloads what is missing."""
    return {name: _load(name, config, device) for name in names}


def _load(name: str, config: MeasureConfig, device: torch.device) -> PictureNetwork:
    if name == "inception":
        from ddx.networks.inception import load_inception

        return load_inception(config.inception, device)
    from ddx.networks.picture_networks import load_clip, load_dino

    if name == "dinov2":
        return load_dino(config.dinov2, device)
    if name == "clip_large":
        return load_clip(config.clip_large, device, "--clip-large", squeezed=True)
    return load_clip(getattr(config, name), device, f"--{name}")
