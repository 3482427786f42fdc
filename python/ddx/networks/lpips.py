"""LPIPS (Zhang et al. 2018, arXiv:1801.03924): how different two pictures look, by torchmetrics.

The linear layers come with torchmetrics, AlexNet's weights from torchvision, through torch's cache.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddx.errors import DdxError

BACKBONE = "alexnet-owt-7be5be79.pth"
URL = f"https://download.pytorch.org/models/{BACKBONE}"


class Lpips:
    """The distance of pairs of pictures."""

    name = "lpips-alex"

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model.to(device).eval().requires_grad_(False), device

    def move(self, device: torch.device) -> None:
        """Compute on this device from now on."""
        self.model.to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return `[B]` of pictures uint8 `[B, H, W, 3]`."""
        found: Tensor = self.model(_pixels(first).to(self.device), _pixels(second).to(self.device))
        return found.flatten().double().cpu().numpy()


def load_lpips(device: torch.device) -> Lpips:
    """Return LPIPS on AlexNet. DdxError with the cure where torchmetrics or the weights are missing."""
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    except (ImportError, ModuleNotFoundError) as error:
        raise DdxError(f"LPIPS needs torchmetrics and torchvision: {error}", hint="pip install 'ddx[eval]'") from error
    except (OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
        raise DdxError(
            f"AlexNet's weights, which LPIPS needs, are not at {file} and cannot be downloaded: {error}",
            hint=f"curl -L --create-dirs -o {file} {URL}",
        ) from error
    return Lpips(metric.net, device)


def _pixels(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
