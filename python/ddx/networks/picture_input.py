"""Pictures as a model of transformers wants them: resized, cropped and normalised as its image processor says.

The processors work on uint8 pictures and have no gradient. This is the same arithmetic on tensors, differentiable; it
differs from them by the rounding to uint8 after the resize. Their settings are in `preprocessor_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ddx.device import send
from ddx.errors import DdxError

_MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which the settings hold


class PictureInput:
    """Turns pixels float `[B, 3, H, W]` in [-1, 1] into what a model takes, float32 or wider `[B, 3, h, w]`."""

    def __init__(self, settings: Mapping[str, Any], name: str) -> None:
        """settings: those of an image processor; DdxError, which calls the model `name`, for ones that it has not."""
        self.size = _side_lengths(settings.get("size"), name) if settings.get("do_resize", True) else None
        resample = int(settings.get("resample", 3))
        if self.size is not None and resample not in _MODES:
            raise DdxError(
                f"the pictures of {name} are resized with Pillow's filter {resample}, which has no gradient here",
                hint="of its preprocessor_config.json the resample must be 0 (nearest), 2 (bilinear) or 3 (bicubic)",
            )
        self.mode = _MODES.get(resample, "")
        crop = _side_lengths(settings.get("crop_size"), name) if settings.get("do_center_crop") else None
        self.crop = (crop, crop) if isinstance(crop, int) else crop
        self.factor = (
            255.0 * float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 255.0
        )
        normalises = settings.get("do_normalize", True)
        self.mean = tuple(settings["image_mean"]) if normalises else (0.0,) * 3
        self.std = tuple(settings["image_std"]) if normalises else (1.0,) * 3

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the model's input. Values outside [-1, 1] are cut, without a gradient: no picture has them."""
        x = (pixels.to(torch.promote_types(pixels.dtype, torch.float32)) * 0.5 + 0.5).clamp(0.0, 1.0)
        if self.size is not None:
            x = self._resized(x, self.size)
        if self.crop is not None:
            x = _centre(x, *self.crop)
        mean, std = (send(torch.tensor(v, dtype=x.dtype), x.device)[:, None, None] for v in (self.mean, self.std))
        return (x * self.factor - mean) / std

    def _resized(self, x: Tensor, size: int | tuple[int, int]) -> Tensor:
        height, width = x.shape[-2:]
        if isinstance(size, int):  # of the shorter side
            longer = int(size * max(height, width) / min(height, width))
            size = (size, longer) if height <= width else (longer, size)
        if size == (height, width):
            return x
        if self.mode == "nearest-exact":
            return functional.interpolate(x, size, mode=self.mode)
        for sides in ((height, size[1]), size):  # along rows and then along columns, each cut to the range, as Pillow
            x = functional.interpolate(x, sides, mode=self.mode, antialias=True, align_corners=False).clamp(0.0, 1.0)
        return x


def _centre(x: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of x, with zeros around it where it is too small."""
    missing = max(height - x.shape[-2], 0), max(width - x.shape[-1], 0)
    if any(missing):
        (top, left), (down, right) = ((-(-m // 2) for m in missing), (m // 2 for m in missing))
        x = functional.pad(x, (left, right, top, down))
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _side_lengths(size: Any, name: str) -> int | tuple[int, int]:
    """Return the length of the shorter side, or height and width."""
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
        return int(size["shortest_edge"])
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise DdxError(
        f"the pictures of {name} have size = {size}, which ddx does not know",
        hint="give a model whose preprocessor_config.json has a shortest_edge, or a height and a width",
    )
