"""Inception-v3 with the weights of TensorFlow's model of 2015, by which FID, KID and the Inception score are defined.

The network is torch-fidelity's. Pictures are resized as clean-fid does (Parmar et al. 2022, arXiv:2104.11222): uint8,
each channel as float with Pillow's bicubic filter, which antialiases, to 299 pixels, cut to [0, 255] and not rounded.
torchvision's Inception has other weights, so its distances are not FID.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ddx.errors import DdxError, first_line
from ddx.networks.picture_networks import PictureNetwork

SIDE = 299
FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
SAME_FILE = "pt_inception-2015-12-05-6726825d.pth"  # pytorch-fid's name of it
_INSTALL = "pip install 'ddx[eval]'"
_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)


class Inception(PictureNetwork):
    """features `[B, 2048]` of the last pooling, and logits `[B, 1008]` without the bias."""

    outputs = ("features", "logits")
    preprocessing = "clean-fid: each channel in float, Pillow bicubic to 299"

    def __init__(self, model: Any, device: torch.device, identity: str) -> None:
        self.model, self.device = model.to(device), device
        self.name, self.identity = "inception-v3-2015-12-05", identity

    @property
    def module(self) -> nn.Module:
        """See :class:`PictureNetwork`."""
        found: nn.Module = self.model
        return found

    def prepare(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return float32 `[3, 299, 299]` in [0, 255]."""
        return torch.from_numpy(clean_resize(picture)).permute(2, 0, 1)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """See :class:`PictureNetwork`."""
        x = (batch.to(self.device) - 128.0) / 128.0  # the scale of the graph of 2015
        for name in _LAYERS:
            x = getattr(self.model, name)(x)
        features = x.flatten(1)
        return {"features": features.float().cpu(), "logits": (features @ self.model.fc.weight.T).float().cpu()}


def clean_resize(picture: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.float32]:
    """Return a picture uint8 `[H, W, 3]` as float32 `[side, side, 3]` in [0, 255]."""
    channels = [
        np.asarray(Image.fromarray(picture[..., c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).clip(0.0, 255.0).astype(np.float32)


def load_inception(path: str | Path | None, device: torch.device) -> Inception:
    """Return the network with the weights of a file: None looks in torch's cache, and downloads them if it can.

    A `.pth` of tensors alone or a safetensors file. DdxError with the cure where there is none, or it does not fit.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise DdxError(f"FID needs torch-fidelity: {error}", hint=_INSTALL) from error
    file = find_weights() if path is None else Path(path).expanduser()
    state = _read(file)
    memory = io.BytesIO()  # it takes a file only, and would run what a pickle says
    torch.save(state, memory)
    memory.seek(0)
    try:
        model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=memory)
    except RuntimeError as error:
        raise DdxError(f"{file} does not hold this Inception-v3", hint=f"give --inception {FILE_NAME}") from error
    return Inception(model, device, f"sha256:{_sha256(file)}")


def find_weights() -> Path:
    """Return the file in torch's cache, downloaded if it was not there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in (FILE_NAME, SAME_FILE):
        if (folder / name).is_file():
            return folder / name
    file = folder / FILE_NAME
    try:
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            raise OSError("HF_HUB_OFFLINE is set")
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix="6726825d", progress=False)
    except (OSError, RuntimeError) as error:
        raise DdxError(
            f"the weights of Inception-v3 are not in {folder} and cannot be downloaded: {error}",
            hint=f"curl -L --create-dirs -o {file} {URL_INCEPTION_V3}   (or give --inception FILE)",
        ) from error
    return file


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        safe = file.suffix == ".safetensors"
        found: dict[str, Tensor] = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        return found
    except Exception as error:  # torch, safetensors and pickle have their own kinds
        raise DdxError(f"cannot read {file}: {first_line(error)}", hint=f"give --inception {FILE_NAME}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
