"""The recipe of a teacher: everything that `ddx train` may be told. The defaults are those of `sana-tiny`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddx.config import option
from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Train a small SANA pipeline on generated scenes."""

    out: Path | None = option(None, "folder of the teacher (none: <workspace>/teachers/sana-tiny)", metavar="PATH")
    seed: int = option(0, "seed of the scenes, the weights, the noise and the times")
    device: str = option("auto", "device to compute on (auto: a GPU if present)", metavar="DEVICE")
    threads: int = option(0, "threads of torch (0: one per core)")
    num_scenes: int = option(48_000, "training pictures, drawn once")

    autoencoder_widths: tuple[int, ...] = option((16, 32, 64, 128), "channels per level; each level doubles them")
    autoencoder_layers: tuple[int, ...] = option((0, 1, 1, 2), "residual blocks per level; 0 skips full resolution")
    latent_channels: int = option(8, "channels of the latent")
    autoencoder_steps: int = option(3000, "optimiser steps of encoder and decoder together")
    decoder_steps: int = option(600, "later steps of the decoder alone, with fixed latents")
    autoencoder_batch_size: int = option(24, "pictures per step of the autoencoder")
    autoencoder_learning_rate: float = option(2e-3, "peak learning rate of the autoencoder")
    latent_noise: float = option(0.1, "noise on the decoder's latents in training, in standard deviations")
    whitening_weight: float = option(0.02, "weight of the loss towards unit covariance of latents")

    vocab_size: int = option(768, "tokens of the byte-level BPE")
    text_width: int = option(128, "width of the Gemma-2 text encoder")
    text_layers: int = option(2, "layers of the text encoder")
    text_steps: int = option(400, "optimiser steps of the text encoder")
    text_batch_size: int = option(128, "captions per step of the text encoder")
    text_learning_rate: float = option(4e-3, "peak learning rate of the text encoder")
    width: int = option(192, "width of the transformer")
    layers: int = option(6, "blocks of the transformer")
    head_width: int = option(32, "channels of an attention head")
    mlp_ratio: float = option(2.0, "hidden channels of the gated convolution, relative to the width")

    flow_steps: int = option(6500, "optimiser steps of the transformer")
    flow_batch_size: int = option(32, "pictures per step of the flow")
    flow_learning_rate: float = option(2e-3, "peak learning rate of Muon and AdamW")
    warmup_steps: int = option(150, "steps over which the learning rate rises from zero")
    decay_share: float = option(0.5, "final share of the flow's steps, over which the learning rate falls to zero")
    weight_decay: float = option(0.01, "Muon's decoupled weight decay")
    clip_norm: float = option(1.0, "largest norm of the gradient; larger gradients are scaled down. 0: no limit")
    ema_decay: float = option(0.998, "decay per step of the exported average of the flow's weights")
    null_probability: float = option(0.1, "share of rows that train without caption, for guidance")
    time_mean: float = option(0.4, "mean of the logit of the time")
    time_std: float = option(1.2, "standard deviation of the logit of the time")

    log_every: int = option(50, "steps between lines of metrics.jsonl")
    checkpoint_every: int = option(200, "steps between checkpoints; the same command resumes from them")
    evaluate_every: int = option(800, "flow steps between scores on held-out captions; 0: only at the end")
    evaluate_captions: int = option(96, "held-out captions per score")
    evaluate_steps: int = option(20, "sampling steps per score")
    evaluate_guidance: float = option(2.0, "guidance of the scores during training")

    def __post_init__(self) -> None:
        pairs = zip(self.autoencoder_widths, self.autoencoder_widths[1:], strict=False)
        if len(self.autoencoder_widths) != len(self.autoencoder_layers) or any(b != 2 * a for a, b in pairs):
            raise UsageError(
                f"autoencoder_widths={self.autoencoder_widths} with autoencoder_layers={self.autoencoder_layers}",
                hint="give both one entry a level; a level is twice as wide as the one before",
            )
        if self.width % self.head_width or self.width % 4:
            raise UsageError(
                f"width={self.width} does not divide into heads of head_width={self.head_width}",
                hint="choose a width that is a multiple of head_width and of 4",
            )
        if self.text_width % 32:
            raise UsageError(f"text_width={self.text_width} is no multiple of 32", hint="choose 32, 64, 96, 128, …")
        if not 0.0 < self.decay_share <= 1.0:
            raise UsageError(f"decay_share={self.decay_share} is outside (0, 1]", hint="0.3 to 0.4 is usual")

    @property
    def downsampling(self) -> int:
        """Pixels by latent cell."""
        return int(2 ** (len(self.autoencoder_widths) - 1))
