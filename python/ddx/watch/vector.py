"""The watched vector: the measures of what is drawn for P prompts from S noises each, as named numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddx.evaluation.features import extract
from ddx.metrics import pictures as measures

ROWS = 1  # pictures at a time: the spectrum of one of 1024 pixels takes 100 MB
SMALL = 1 / 255 / 64  # under what a grey level in one value of 64 changes, two numbers count as equal

RATIOS = ("brightness", "contrast", "saturation", *(f"octave_{k + 1}" for k in range(measures.NUM_OCTAVES)))


@dataclass(frozen=True)
class Drawn:
    """Pictures uint8 `[P, S, H, W, 3]` on the CPU, and their features, float64 `[P, S, 64]`."""

    pictures: Tensor
    features: Tensor

    @classmethod
    def of(cls, pictures: Tensor) -> Drawn:
        """Return them with their features."""
        rows = extract(pictures.flatten(0, 1).numpy())
        return cls(pictures, torch.from_numpy(rows).unflatten(0, pictures.shape[:2]))


def measured(drawn: Drawn, device: torch.device | str = "cpu") -> dict[str, float]:
    """Return the means over all pictures of each measure by name, and the variety over the seeds of a prompt.

    An octave is the square root of its energy: an amplitude, as contrast is. `variety_pixels` is a root mean square
    over the values of a picture, in [0, 1].
    """
    rows = drawn.pictures.flatten(0, 1)
    parts = [measures_of(part.to(device)) for part in rows.split(ROWS)]
    means = torch.cat(parts).mean(0)
    names = ("brightness", "contrast", "saturation", "clipped", *RATIOS[3:])
    found = dict(zip(names, means.tolist(), strict=True))
    pixels = drawn.pictures.flatten(2).float() / 255.0
    found["variety_pixels"] = float(measures.spread(pixels)) / pixels.shape[-1] ** 0.5
    found["variety_features"] = float(measures.spread(drawn.features))
    return found


def measures_of(pictures: Tensor) -> Tensor:
    """Return the measures of pictures uint8 `[N, H, W, 3]`, float64 `[N, 4 + 5]`, on the CPU."""
    named = (measures.brightness, measures.contrast, measures.saturation, measures.clipped)
    columns = [measure(pictures) for measure in named]
    return torch.cat([torch.stack(columns, 1), measures.octaves(pictures).sqrt()], 1).cpu()


def ratio(value: float, reference: float) -> float:
    """Return `value / reference`, both not below 0; 1 where both are next to nothing."""
    return (value + SMALL) / (reference + SMALL)
