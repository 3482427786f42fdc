"""Tiny pipelines with random weights of every family, one maker a file, called as the family's row in the table.

A maker's file has `make(folder)`, and where the family differs: `guided(scale)`, the arguments of the pipeline's call
for a guidance in ddx's convention; `unpacked(latents, shape)`, the pipeline's latents as ddx keeps them; `fresh(noise,
shape)`, the noise of a later step as ddx keeps it, which the scheduler draws in the layout of the pipeline's latents;
`EXACT`, false where the two round differently, with the reason beside it; `SIZES`, (height, width) in pixels;
`LENGTH_STEP`, 1 where the pipeline pads a text to no more than its length, since padding rounds differently.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddx.teachers.families.table import FAMILIES
from ddx.teachers.parts.batches import LENGTH_STEP

NAMES = tuple(family.name for family in FAMILIES)


class Tiny:
    """What the tests need of a family."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = importlib.import_module(f"tiny.{name.replace('-', '_')}")
        self.length_step: int = getattr(self.module, "LENGTH_STEP", LENGTH_STEP)
        self.exact: bool = getattr(self.module, "EXACT", True)
        self.sizes: tuple[tuple[int, int], ...] = getattr(self.module, "SIZES", ((64, 64), (64, 96)))

    def make(self, folder: Path) -> Path:
        torch.manual_seed(0)
        path: Path = self.module.make(folder)
        return path

    def guided(self, scale: float) -> dict[str, Any]:
        arguments: dict[str, Any] = getattr(self.module, "guided", lambda s: {"guidance_scale": s})(scale)
        return arguments

    def unpacked(self, latents: Tensor, shape: tuple[int, int, int]) -> Tensor:
        unpack = getattr(self.module, "unpacked", None)
        found: Tensor = latents if unpack is None else unpack(latents, shape)
        return found

    def fresh(self, noise: Tensor, shape: tuple[int, int, int]) -> Tensor:
        found: Tensor = getattr(self.module, "fresh", lambda noise, _shape: noise)(noise, shape)
        return found


def open_pipeline(folder: Path, **components: Any) -> Any:
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
