"""Frozen networks whose features of pictures are compared: DINOv2 and CLIP, from transformers.

    FD-DINOv2   the class token of DINOv2 ViT-L/14 at 224 pixels (Stein et al. 2023, arXiv:2306.04675)
    CMMD        CLIP ViT-L/14 at 336 pixels, the picture squeezed to a square (Jayasumana et al. 2024, arXiv:2401.09603)
    CLIPScore   CLIP's own resize and crop (Hessel et al. 2021, arXiv:2104.08718); PickScore likewise

Resizes are Pillow's, on uint8, as the models' own programs do them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ddx.errors import DdxError, first_line
from ddx.networks.picture_input import PictureInput
from ddx.networks.scorers import Scorer, load_scorer
from ddx.teachers.components import no_progress_bars
from ddx.teachers.registry import is_hub_id

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
DINO_SIDE = 224


class PictureNetwork(ABC):
    """A network that turns pictures into features.

    outputs: the names of what it returns. identity: what tells its weights from others, a commit or a hash.
    preprocessing: how pictures are resized, in words.
    """

    outputs: ClassVar[tuple[str, ...]] = ("features",)
    preprocessing: str
    name: str
    identity: str
    device: torch.device

    @abstractmethod
    def prepare(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return what the network takes of a picture uint8 `[H, W, 3]`, float32 `[3, h, w]`. Threads may call it."""

    @abstractmethod
    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Return float32 `[B, D]` on the CPU by name of output, of a batch of what `prepare` returned."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The network itself."""

    def move(self, device: torch.device) -> None:
        """Compute on this device from now on."""
        self.module.to(device)
        self.device = device

    @property
    def facts(self) -> dict[str, str]:
        """What a report says of it."""
        return {"name": self.name, "weights": self.identity, "preprocessing": self.preprocessing}


class PillowInput:
    """Turns a picture uint8 `[H, W, 3]` into a model's input by the settings of its image processor, as Pillow does."""

    def __init__(self, settings: dict[str, Any], name: str) -> None:
        self.tensor_input = PictureInput(settings, name)
        self.resample = Image.Resampling(int(settings.get("resample", 3)))

    def __call__(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return float32 `[3, h, w]`."""
        size = self.tensor_input.size
        if size is not None:
            height, width = picture.shape[:2]
            if isinstance(size, int):  # of the shorter side
                longer = int(size * max(height, width) / min(height, width))
                size = (size, longer) if height <= width else (longer, size)
            picture = np.asarray(Image.fromarray(picture).resize((size[1], size[0]), self.resample))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1.0
        return self.tensor_input(pixels[None])[0]


class Dino(PictureNetwork):
    """The class token of a DINOv2 of transformers, after its last norm."""

    def __init__(self, model: Any, device: torch.device, name: str, identity: str) -> None:
        self.model: Any = model.to(device).eval().requires_grad_(False)
        self.device, self.name, self.identity = device, name, identity
        patch = int(model.config.patch_size)
        side = max(patch, DINO_SIDE // patch * patch)
        self.preprocessing = f"Pillow bicubic to {side}x{side}, ImageNet's mean and deviation"
        self.prepare_picture = PillowInput({"size": {"height": side, "width": side}, "resample": 3, **IMAGENET}, name)

    @property
    def module(self) -> nn.Module:
        """See :class:`PictureNetwork`."""
        found: nn.Module = self.model
        return found

    def prepare(self, picture: NDArray[np.uint8]) -> Tensor:
        """See :class:`PictureNetwork`."""
        return self.prepare_picture(picture)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """See :class:`PictureNetwork`."""
        return {"features": self.model(pixel_values=batch.to(self.device)).last_hidden_state[:, 0].float().cpu()}


class ClipPictures(PictureNetwork):
    """Unit features of a CLIP-like model's picture tower; `scorer` has its text tower.

    squeezed: the whole picture in a square, as CMMD wants; else the model's own resize and crop.
    """

    def __init__(
        self, scorer: Scorer, settings: dict[str, Any], device: torch.device, name: str, identity: str
    ) -> None:
        self.scorer, self.device, self.name, self.identity = scorer, device, name, identity
        self.prepare_picture = PillowInput(settings, name)
        size, crop = self.prepare_picture.tensor_input.size, self.prepare_picture.tensor_input.crop
        self.preprocessing = f"Pillow to {size}" + (f", the middle {crop[1]}x{crop[0]}" if crop else "")

    @property
    def module(self) -> nn.Module:
        """See :class:`PictureNetwork`."""
        found: nn.Module = self.scorer.model
        return found

    def prepare(self, picture: NDArray[np.uint8]) -> Tensor:
        """See :class:`PictureNetwork`."""
        return self.prepare_picture(picture)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """See :class:`PictureNetwork`."""
        return {"features": self.scorer.picture_features(batch.to(self.device)).cpu()}


def load_dino(name: str, device: torch.device) -> Dino:
    """Return the DINOv2 at a path or hub id. DdxError with the cure where it cannot be loaded."""
    from transformers import AutoModel

    try:
        with no_progress_bars():
            model = AutoModel.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise _missing(name, "--dinov2", error) from error
    if not hasattr(model.config, "patch_size"):
        raise DdxError(f"{name!r} is no DINOv2, but a {model.config.model_type}", hint="give --dinov2 a folder of one")
    return Dino(model, device, name, identity_of(name, model))


def load_clip(name: str, device: torch.device, flag: str, *, squeezed: bool = False) -> ClipPictures:
    """Return the picture tower of the CLIP-like model at a path or hub id, and its text tower.

    flag: of the command line, for errors. DdxError with the cure where it cannot be loaded.
    """
    scorer = load_scorer(name, device, flag)
    settings = dict(scorer.settings)
    if squeezed:
        side = int(scorer.model.config.vision_config.image_size)
        settings = {"size": {"height": side, "width": side}, "resample": 3, **CLIP}
    return ClipPictures(scorer, settings, device, name, identity_of(name, scorer.model))


def identity_of(name: str, model: Any) -> str:
    """Return a model's commit on the hub, or a hash of the weight files of its folder."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return f"{name}@{commit}"
    files = sorted(path for end in ("*.safetensors", "*.bin") for path in Path(name).expanduser().glob(end))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _missing(name: str, flag: str, error: Exception) -> DdxError:
    download = f"with a network, run `hf download {name}`; or " if is_hub_id(name) else ""
    return DdxError(
        f"no model at {name!r}: {first_line(error)}", hint=f"{download}give {flag} a folder that save_pretrained wrote"
    )
