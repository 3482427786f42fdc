"""The three stages of a teacher, built from its recipe: autoencoder, flow, decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import Gemma2Model

from ddx.scenes.captions import sample_captions
from ddx.scenes.checker import score
from ddx.training.ema import EMA
from ddx.training.optimizer import warmup_constant, warmup_cosine
from ddx.training.teacher.autoencoder import autoencoder_loss, decode_pictures, decoder_loss, to_network_range
from ddx.training.teacher.config import TeacherConfig
from ddx.training.teacher.flow import flow_loss, sample, sample_times
from ddx.training.teacher.muon import Muon, split_parameters
from ddx.training.teacher.stage import Stage
from ddx.training.teacher.text import TokenisedCaptions, encode_captions

AUTOENCODER_WARMUP = 100
EVALUATION_SEED = 5


def autoencoder_stage(config: TeacherConfig, autoencoder: AutoencoderDC, pictures: Tensor) -> Stage:
    """Encoder and decoder together. pictures: uint8 [N, 64, 64, 3]."""
    rows, grid = config.autoencoder_batch_size, pictures.shape[1] // config.downsampling

    def loss(generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        images = to_network_range(pictures[torch.randint(len(pictures), (rows,), generator=generator)])
        noise = torch.randn(rows, config.latent_channels, grid, grid, generator=generator)
        return autoencoder_loss(
            autoencoder,
            images.contiguous(memory_format=torch.channels_last),
            noise,
            noise_scale=config.latent_noise,
            whitening_weight=config.whitening_weight,
        )

    return _autoencoder_like("autoencoder", config, autoencoder, config.autoencoder_steps, loss)


def decoder_stage(config: TeacherConfig, autoencoder: AutoencoderDC, pictures: Tensor, latents: Tensor) -> Stage:
    """The decoder alone. latents: unscaled [N, C, h, w] of the pictures, uint8 [N, 64, 64, 3]."""
    rows = config.autoencoder_batch_size
    autoencoder.encoder.requires_grad_(False)

    def loss(generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = torch.randint(len(pictures), (rows,), generator=generator)
        noise = torch.randn(rows, *latents.shape[1:], generator=generator)
        images = to_network_range(pictures[chosen])
        return decoder_loss(autoencoder, latents[chosen], images, noise, noise_scale=config.latent_noise)

    return _autoencoder_like("decoder", config, autoencoder, config.decoder_steps, loss)


def _autoencoder_like(
    name: str,
    config: TeacherConfig,
    autoencoder: AutoencoderDC,
    steps: int,
    loss: Callable[[torch.Generator], tuple[Tensor, Mapping[str, Tensor]]],
) -> Stage:
    trained = [value for value in autoencoder.parameters() if value.requires_grad]
    warmup = min(AUTOENCODER_WARMUP, steps // 4)
    return Stage(
        name=name,
        network=autoencoder,
        optimizers={"adamw": AdamW(trained, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)},
        ema=EMA(autoencoder, decay=0.995, ramp_up=0.05),
        loss=loss,
        learning_rate=config.autoencoder_learning_rate,
        schedule=partial(warmup_cosine, warmup_steps=warmup, total_steps=steps),
        steps=steps,
        batch_size=config.autoencoder_batch_size,
        clip_norm=config.clip_norm,
        seed=config.seed,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
    )


def flow_stage(
    config: TeacherConfig,
    transformer: SanaTransformer2DModel,
    text_encoder: Gemma2Model,
    latents: Tensor,
    captions: TokenisedCaptions,
    evaluate: Callable[[SanaTransformer2DModel, Gemma2Model], Mapping[str, float]],
) -> Stage:
    """Transformer and text encoder together. latents: scaled to unit variance [N, C, h, w]; captions: one a row."""
    rows = config.flow_batch_size
    network = nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})
    matrices, others = split_parameters(transformer, text_encoder)
    ema = EMA(network, decay=config.ema_decay, ramp_up=1.0)

    def loss(generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = torch.randint(len(latents), (rows,), generator=generator)
        noise = torch.randn(rows, *latents.shape[1:], generator=generator)
        times = sample_times(rows, config.time_mean, config.time_std, generator)
        mask = captions.mask[chosen]
        longest = int(mask.sum(dim=1).max())
        tokens, mask = encode_captions(text_encoder, captions.prefix, captions.ids[chosen, :longest], mask[:, :longest])
        mask[torch.rand(rows, generator=generator) < config.null_probability, 1:] = False
        return flow_loss(transformer, latents[chosen], noise, times, tokens, mask).mean(), {}

    def evaluate_average() -> Mapping[str, float]:
        live = {name: value.detach().clone() for name, value in network.named_parameters()}
        ema.copy_to(network)
        try:
            return evaluate(transformer, text_encoder)
        finally:
            network.load_state_dict(live, strict=False)

    return Stage(
        name="flow",
        network=network,
        optimizers={
            "muon": Muon(matrices, lr=config.flow_learning_rate, weight_decay=config.weight_decay),
            "adamw": AdamW(others, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        },
        ema=ema,
        loss=loss,
        learning_rate=config.flow_learning_rate,
        schedule=partial(flow_schedule, config),
        steps=config.flow_steps,
        batch_size=rows,
        clip_norm=config.clip_norm,
        seed=config.seed + 1,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        evaluate=evaluate_average,
    )


def flow_schedule(config: TeacherConfig, step: int) -> float:
    """Warm-up, constant, then a straight fall to zero over the last `decay_share` of the steps."""
    decay_steps = max(1.0, config.decay_share * config.flow_steps)
    fall = min(1.0, (config.flow_steps - step) / decay_steps)
    return warmup_constant(step, warmup_steps=config.warmup_steps) * fall


class HeldOutScore:
    """Scores a flow on held-out captions with the exact checker, always from the same noise."""

    def __init__(
        self,
        config: TeacherConfig,
        autoencoder: AutoencoderDC,
        scale: float,
        tokenise: Callable[[list[str]], TokenisedCaptions],
    ) -> None:
        self.autoencoder, self.scale, self.config = autoencoder, scale, config
        self.captions = sample_captions(config.evaluate_captions, EVALUATION_SEED, "held-out")
        self.tokens = tokenise(self.captions)

    @torch.no_grad()
    def __call__(
        self,
        transformer: SanaTransformer2DModel,
        text_encoder: Gemma2Model,
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> dict[str, float]:
        """Return the mean of each attribute of the checker."""
        tokens, mask = encode_captions(text_encoder, self.tokens.prefix, self.tokens.ids, self.tokens.mask)
        size = transformer.config.sample_size
        noise = torch.randn(
            len(tokens), transformer.config.in_channels, size, size, generator=torch.Generator().manual_seed(9)
        )
        steps = steps or self.config.evaluate_steps
        guidance = self.config.evaluate_guidance if guidance is None else guidance
        latents = sample(transformer, noise, tokens, mask, steps=steps, guidance=guidance)
        pictures: np.ndarray = decode_pictures(self.autoencoder, latents / self.scale).numpy()
        return score(pictures, self.captions)
