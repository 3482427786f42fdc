"""A small model that scores pictures of `scenes` for their captions: convolutions and words, in the manner of CLIP.

It is a model of transformers, so `save_pretrained` writes it and `--reward FOLDER` opens it. Plain convolutions with
batch norms learnt the shapes of 64 pixels soonest (docs/log.md), and their map is read whole, not averaged: where an
object is, is half of what a caption says.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel


class _TextConfig(PretrainedConfig):
    model_type = "ddx-scene-scorer-text"


class _VisionConfig(PretrainedConfig):
    model_type = "ddx-scene-scorer-vision"


class SceneScorerConfig(PretrainedConfig):
    """widths: channels after each halving of the picture; num_words: of the vocabulary, 0 is padding."""

    model_type = "ddx-scene-scorer"
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "text_config": _TextConfig,
        "vision_config": _VisionConfig,
    }

    def __init__(
        self,
        num_words: int = 64,
        longest_text: int = 16,
        image_size: int = 64,
        widths: tuple[int, ...] = (24, 48, 96, 128),
        width: int = 256,
        projection_dim: int = 128,
        **more: Any,
    ) -> None:
        self.num_words, self.longest_text, self.image_size = num_words, longest_text, image_size
        self.widths, self.width, self.projection_dim = list(widths), width, projection_dim
        more.pop("text_config", None), more.pop("vision_config", None)
        self.text_config = _TextConfig(max_position_embeddings=longest_text)
        self.vision_config = _VisionConfig(image_size=image_size)
        super().__init__(**more)


class SceneScorer(PreTrainedModel):
    """Two towers with features of one width."""

    config_class = SceneScorerConfig
    base_model_prefix = "scorer"

    def __init__(self, config: SceneScorerConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        before = 3
        for width in config.widths:
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        side = config.image_size >> len(config.widths)
        self.vision = nn.Sequential(*layers, nn.Flatten(), *_head(before * side * side, config))
        self.words = nn.Embedding(config.num_words, 32, padding_idx=0)
        self.text = nn.Sequential(nn.Flatten(), *_head(32 * config.longest_text, config))
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return features `[B, projection_dim]` of pictures `[B, 3, image_size, image_size]`."""
        found: Tensor = self.vision(pixel_values)
        return found

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return features `[B, projection_dim]` of words, int64 `[B, L]`; they are padded to the longest text."""
        padded = nn.functional.pad(input_ids, (0, self.config.longest_text - input_ids.shape[1]))
        found: Tensor = self.text(self.words(padded))
        return found

    def _init_weights(self, module: nn.Module) -> None:
        """Leave torch's own initialisation."""


def _head(width: int, config: SceneScorerConfig) -> list[nn.Module]:
    return [nn.Linear(width, config.width), nn.ReLU(), nn.Linear(config.width, config.projection_dim)]


AutoConfig.register(SceneScorerConfig.model_type, SceneScorerConfig, exist_ok=True)
AutoModel.register(SceneScorerConfig, SceneScorer, exist_ok=True)
