"""Tiny pipelines with random weights of every family, one maker a file, called as the family's row in the table.

A maker's file has `make(folder)`, and where the family differs: `guided(scale)`, the arguments of the pipeline's call
for a guidance in ddx's convention; `unpacked(latents, shape)`, the pipeline's latents as ddx keeps them; `fresh(noise,
shape)`, the noise of a later step as ddx keeps it, which the scheduler draws in the layout of the pipeline's latents;
`EXACT`, false where the two round differently, with the reason beside it; `SIZES`, (height, width) in pixels;
`LENGTH_STEP`, 1 where the pipeline pads a text to no more than its length, since padding rounds differently.

What its published network takes and gives, for the exact ground (`closed_form.Convention`): `TIMES`, what its sinusoids
see at the picture and at noise, where those are not 0 and 1000 of a flow, or the whole timesteps of a table; `SIGN`, -1
where it gives ``x0 - eps``; `layout(latents)`, latents as the network takes them. `VARIANTS`: further settings of
`make`, by a name, under which the family's network is another one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from closed_form import Convention
from ddx.process import FlowProcess, Process
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

        self.variants: dict[str, dict[str, Any]] = getattr(self.module, "VARIANTS", {})

    def make(self, folder: Path, variant: str = "") -> Path:
        torch.manual_seed(0)
        path: Path = self.module.make(folder, **(self.variants[variant] if variant else {}))
        return path

    def convention(self, process: Process) -> Convention:
        usual = (0.0, 1000.0) if isinstance(process, FlowProcess) else (0.0, process.t_max)
        times: tuple[float, float] = getattr(self.module, "TIMES", usual)
        layout: Callable[[Tensor], Tensor] = getattr(self.module, "layout", lambda latents: latents)
        return Convention(times=times, sign=getattr(self.module, "SIGN", 1.0), layout=layout)

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
