"""The four stages of a teacher, built from its recipe: autoencoder, text, flow, decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import Gemma2Model

from ddx.scenes.captions import sample_captions
from ddx.scenes.checker import score
from ddx.training.ema import EMA
from ddx.training.optimizer import warmup_constant, warmup_cosine
from ddx.training.teacher.autoencoder import autoencoder_loss, decode_pictures, decoder_loss, to_network_range
from ddx.training.teacher.caption_questions import new_reader, reading_loss
from ddx.training.teacher.config import TeacherConfig
from ddx.training.teacher.flow import flow_loss, sample, sample_times
from ddx.training.teacher.muon import Muon, split_parameters
from ddx.training.teacher.stage import Stage
from ddx.training.teacher.text import TokenisedCaptions, encode_captions

AUTOENCODER_WARMUP = 100
TEXT_WARMUP = 50
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
            noise.to(images.device),
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
        noise = torch.randn(rows, *latents.shape[1:], generator=generator).to(latents.device)
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


def text_stage(config: TeacherConfig, text_encoder: Gemma2Model, captions: TokenisedCaptions, labels: Tensor) -> Stage:
    """The text encoder, by what captions say. labels: of `scene_labels`, one row a caption."""
    rows, warmup = config.text_batch_size, min(TEXT_WARMUP, config.text_steps // 4)
    reader = new_reader(config.text_width).to(labels.device)
    network = nn.ModuleDict({"text_encoder": text_encoder, "reader": reader})
    matrices, others = split_parameters(text_encoder)

    def loss(generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = torch.randint(len(labels), (rows,), generator=generator)
        tokens, mask = encode_captions(text_encoder, captions.prefix, *captions.rows(chosen))
        result, right = reading_loss(reader, tokens[:, 1:], mask[:, 1:], labels[chosen])
        return result, {"read": right}

    return Stage(
        name="text",
        network=network,
        optimizers=_muon_and_adamw(config, matrices, [*others, *reader.parameters()]),
        ema=EMA(network, decay=0.99, ramp_up=1.0),
        loss=loss,
        learning_rate=config.text_learning_rate,
        schedule=partial(warmup_cosine, warmup_steps=warmup, total_steps=config.text_steps),
        steps=config.text_steps,
        batch_size=rows,
        clip_norm=config.clip_norm,
        seed=config.seed + 2,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
    )


def flow_stage(
    config: TeacherConfig,
    transformer: SanaTransformer2DModel,
    latents: Tensor,
    tokens: Tensor,
    mask: Tensor,
    evaluate: Callable[[SanaTransformer2DModel], Mapping[str, float]],
) -> Stage:
    """The transformer, on text that is encoded once: the encoder is frozen, as SANA's is.

    latents: scaled to unit variance [N, C, h, w]; tokens [N, L, D] and mask [N, L] of `encode_captions`, a row each.
    """
    rows = config.flow_batch_size
    ema = EMA(transformer, decay=config.ema_decay, ramp_up=1.0)

    def loss(generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = torch.randint(len(latents), (rows,), generator=generator)
        noise = torch.randn(rows, *latents.shape[1:], generator=generator).to(latents.device)
        times = sample_times(rows, config.time_mean, config.time_std, generator).to(latents.device)
        kept = mask[chosen]
        longest = int(kept.sum(dim=1).max())
        kept = kept[:, :longest].clone()
        kept[torch.rand(rows, generator=generator) < config.null_probability, 1:] = False
        return flow_loss(transformer, latents[chosen], noise, times, tokens[chosen, :longest], kept).mean(), {}

    def evaluate_average() -> Mapping[str, float]:
        live = {name: value.detach().clone() for name, value in transformer.named_parameters()}
        ema.copy_to(transformer)
        try:
            return evaluate(transformer)
        finally:
            transformer.load_state_dict(live, strict=False)

    return Stage(
        name="flow",
        network=transformer,
        optimizers=_muon_and_adamw(config, *split_parameters(transformer)),
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


def _muon_and_adamw(
    config: TeacherConfig, matrices: list[nn.Parameter], others: list[nn.Parameter]
) -> dict[str, Optimizer]:
    """Return both optimisers; the stage sets their learning rate at every step."""
    return {
        "muon": Muon(matrices, lr=0.0, weight_decay=config.weight_decay),
        "adamw": AdamW(others, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    }


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
        encode: Callable[[list[str]], tuple[Tensor, Tensor]],
    ) -> None:
        self.autoencoder, self.scale, self.config = autoencoder, scale, config
        self.captions = sample_captions(config.evaluate_captions, EVALUATION_SEED, "held-out")
        self.tokens, self.mask = encode(self.captions)

    @torch.no_grad()
    def __call__(
        self, transformer: SanaTransformer2DModel, *, steps: int | None = None, guidance: float | None = None
    ) -> dict[str, float]:
        """Return the mean of each attribute of the checker."""
        size = transformer.config.sample_size
        noise = torch.randn(
            len(self.tokens), transformer.config.in_channels, size, size, generator=torch.Generator().manual_seed(9)
        )
        steps = steps or self.config.evaluate_steps
        guidance = self.config.evaluate_guidance if guidance is None else guidance
        noise = noise.to(self.tokens.device)
        latents = sample(transformer, noise, self.tokens, self.mask, steps=steps, guidance=guidance)
        pictures: np.ndarray = decode_pictures(self.autoencoder, latents / self.scale).cpu().numpy()
        return score(pictures, self.captions)
