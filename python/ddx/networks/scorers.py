"""Frozen models that score pictures for captions: two towers of transformers, opened from a folder or the hub.

    score = <image, text> / (|image| |text|)         the towers' projected features

CLIP (Radford et al. 2021, arXiv:2103.00020), SigLIP (Zhai et al. 2023, arXiv:2303.15343) and PickScore (Kirstain et al.
2023, arXiv:2305.01569), a CLIP model tuned on what people prefer. The models' own scale and bias are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddx.device import send
from ddx.errors import DdxError, first_line
from ddx.networks.picture_input import PictureInput
from ddx.teachers.components import no_progress_bars, weights_are_wanted
from ddx.teachers.registry import is_hub_id

NUM_CACHED = 100_000  # captions whose features are kept, in float32 on the CPU: 400 MB of the widest model's


class Scorer:
    """Scores of pictures float `[B, 3, H, W]` in [-1, 1] for captions, differentiable by the pictures."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        picture_input: PictureInput,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """settings: those of the model's image processor."""
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.picture_input, self.settings = tokenizer, picture_input, settings
        self._cached: dict[str, Tensor] = {}

    @property
    def revision(self) -> str | None:
        """The commit of a model from the hub."""
        return getattr(self.model.config, "_commit_hash", None)

    def scores(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Return the cosines, `[B]` in [-1, 1], with `text`: :meth:`text_features` of each picture's caption."""
        return (self.picture_features(self.picture_input(pixels)) * text).sum(-1)

    def picture_features(self, inputs: Tensor) -> Tensor:
        """Return unit features, float32 or wider `[B, D]`, of what the model takes, `[B, 3, h, w]`."""
        found = _projected(self.model.get_image_features(pixel_values=inputs))
        return functional.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=-1)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Return unit features, float32 `[B, D]`, of captions; the same caption is computed once.

        What is too long for the model is cut, as its tokenizer does.
        """
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._cached]
        if len(self._cached) + len(missing) > NUM_CACHED:
            self._cached, missing = {}, list(dict.fromkeys(captions))
        if missing:
            with torch.autocast(device.type, enabled=False):
                found = _projected(self.model.get_text_features(**self._tokens(missing).to(device)))
            self._cached |= dict(zip(missing, functional.normalize(found.float(), dim=-1).cpu(), strict=True))
        return send(torch.stack([self._cached[caption] for caption in captions]), device)

    def _tokens(self, captions: Sequence[str]) -> Any:
        config = self.model.config
        longest = int(getattr(config.text_config, "max_position_embeddings", 77))
        if not config.model_type.startswith("siglip"):
            return self.tokenizer(captions, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        # it reads the padding, and was trained with it at that length and without a mask
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        tokens.pop("attention_mask", None)
        return tokens


def load_scorer(name: str, device: torch.device, flag: str = "--reward") -> Scorer:
    """Return the scorer at a path or hub id. DdxError with the cure where it cannot be loaded or has no text tower.

    flag: of the command line, which errors name.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.image_processing_base import ImageProcessingMixin

    import ddx.networks.scene_scorer  # noqa: F401  so that transformers opens them

    try:
        with no_progress_bars():
            config = AutoConfig.from_pretrained(name)
            if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
                raise _no_scorer(name, flag, f"a {config.model_type} model has no towers for pictures and for text")
            settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModel.from_pretrained(name) if weights_are_wanted() else AutoModel.from_config(config)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise DdxError(
            f"no scorer at {name!r}: {first_line(error)}",
            hint=f"{_download(name)}give {flag} a folder that save_pretrained wrote: the model, its tokenizer and "
            "its image processor",
        ) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise _no_scorer(name, flag, f"{type(model).__name__} gives no features of pictures and of text")
    return Scorer(model.to(device), tokenizer, PictureInput(settings, name), settings)


def _download(name: str) -> str:
    """Return the advice to download it, where it may be the id of a hub; a path is none."""
    return f"with a network, run `hf download {name}`; or " if is_hub_id(name) else ""


def _no_scorer(name: str, flag: str, why: str) -> DdxError:
    return DdxError(
        f"{name!r} cannot score pictures for captions: {why}",
        hint=f"give {flag} a model of the CLIP kind, such as yuvalkirstain/PickScore_v1 or "
        "google/siglip-base-patch16-224",
    )


def _projected(found: Any) -> Tensor:
    """Return a tower's projected features; transformers 4 returns them bare."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features
