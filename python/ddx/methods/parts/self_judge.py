"""A discriminator that is a denoiser's own features, pooled to logits: no weight is added.

A UNet's logits are the means over the channels of its middle block, one a position (SiDA, Zhou et al. 2024,
arXiv:2410.14919). A transformer's are the means over the picture, one a channel (SiD-DiT, Zhou et al. 2025,
arXiv:2509.25127): of its last block's output with every position normalised over the channels, where SiD-DiT takes the
network's last norm with the modulation that follows it. Both cut logits to +-10.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.features import as_map, outputs_of

LARGEST_LOGIT = 10.0


class SelfJudge:
    """Logits of what networks of the teacher's class denoise."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.is_unet = teacher.denoiser_part == "unet"

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """Collect the outputs of the judging layer, one a pass inside the `with` block."""
        layers = self.teacher.feature_layers(network)  # those of a UNet begin with its middle block
        with outputs_of([layers[0 if self.is_unet else -1]]) as found:
            yield found

    def logits(self, output: Tensor, x_t: Tensor, condition: Condition) -> Tensor:
        """Return the logits `[B, K]` of x_t `[B, C, h, w]` from the layer's output, float32 or wider."""
        feature = as_map(self.teacher.picture_part(output, x_t, condition), x_t).flatten(2)  # [B, D, N]
        feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
        if self.is_unet:
            pooled = feature.mean(1)
        else:
            pooled = layer_norm(feature.transpose(1, 2), feature.shape[1:2], eps=1e-6).mean(1)
        return pooled.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
