"""What `ddx train --dry-run` says about memory and time: a step of each long stage is taken, and timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ddx.scenes.render import RESOLUTION
from ddx.training.estimate import in_words
from ddx.training.teacher.autoencoder import new_autoencoder
from ddx.training.teacher.config import TeacherConfig
from ddx.training.teacher.flow import new_transformer
from ddx.training.teacher.stage import Stage, take_step
from ddx.training.teacher.stages import autoencoder_stage, flow_stage
from ddx.training.tracking import peak_memory_bytes

TYPICAL_TOKENS = 12
TIMED_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """Orders of magnitude: parameters of the transformer, bytes of memory, seconds of the whole training."""

    num_parameters: int
    memory_bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"about {self.memory_bytes / 2**30:.1f} GiB of memory for a denoiser of {self.num_parameters / 1e6:.1f} M "
            f"parameters, and about {in_words(self.seconds)} on this machine"
        )


def estimate_training(config: TeacherConfig) -> Estimate:
    """Return the parameters of the transformer, bytes and seconds. Left out: drawing, the text stage and the scores.

    Memory is what the tried steps took, and the data set in full: pictures, latents (plain and scaled) and text.
    """
    grid = RESOLUTION // config.downsampling
    latents = torch.randn(config.flow_batch_size, config.latent_channels, grid, grid)
    tokens = torch.randn(len(latents), TYPICAL_TOKENS, config.text_width)
    pictures = torch.zeros(config.autoencoder_batch_size, RESOLUTION, RESOLUTION, 3, dtype=torch.uint8)
    autoencoder, transformer = new_autoencoder(config), new_transformer(config)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    flow = flow_stage(config, transformer, latents, tokens, mask, evaluate=lambda _: {})
    first = autoencoder_stage(config, autoencoder, pictures)
    # a step of the decoder alone is about half of one of both
    autoencoder_steps = config.autoencoder_steps + config.decoder_steps / 2
    seconds = autoencoder_steps * _seconds_of_a_step(first) + config.flow_steps * _seconds_of_a_step(flow)
    a_row = pictures[0].numel() + 4 * (2 * latents[0].numel() + tokens[0].numel())
    memory = peak_memory_bytes(torch.device("cpu")) + config.num_scenes * a_row
    return Estimate(sum(value.numel() for value in transformer.parameters()), memory, seconds)


def _seconds_of_a_step(stage: Stage) -> float:
    skipped = torch.zeros(())
    take_step(stage, 0, skipped)  # the first one makes the optimiser's state
    began = time.perf_counter()
    for step in range(TIMED_STEPS):
        take_step(stage, 1 + step, skipped)
    return (time.perf_counter() - began) / TIMED_STEPS
