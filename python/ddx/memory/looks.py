"""What the looks and grids of a run take beside what it trains with, on tensors without data.

They come between two steps, when no gradient is alive: the teacher draws, once; the student draws with its averaged
weights; then one picture after the other is decoded and measured.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn import functional

from ddx.memory.fake_gpu import attention
from ddx.memory.ledger import Ledger, Peak, Use
from ddx.methods.base import STUDENT, Method
from ddx.teachers.condition import Condition
from ddx.training.config import DistillConfig
from ddx.training.trainer import Trainer
from ddx.training.watching import is_watched
from ddx.watch.validation import drawing_guidance
from ddx.watch.vector import measures_of

AUTOENCODER, DRAWING = "autoencoder", "drawing"
_STEPS = 2  # of the student: the second adds its noise to what the first has drawn


def draws(config: DistillConfig, method: Method) -> bool:
    """Return whether a run looks at pictures or writes grids of them."""
    return is_watched(config, method) or 0 < config.sample_every <= config.train_steps


def peak_of_looks(
    trainer: Trainer, ledger: Ledger, text: Condition, null: Condition, decoder: int | None
) -> Peak | None:
    """Return the peak of a look, with as many pictures at a time as `text` has rows.

    decoder: bytes that decoding takes, None to count it whole. None of a student whose drawing asks for values.
    """
    teacher = trainer.method.teacher
    network, shape, rows = teacher.network(), teacher.latent_shape(trainer.config.resolution), len(text)
    with ledger.apart(), torch.no_grad():
        ledger.begin_span()
        noises = [torch.empty(rows, *shape) for _ in range(_STEPS)]
        times = torch.ones(rows, dtype=torch.float64)
        guidance = drawing_guidance(trainer.method)
        with trainer.autocast(), ledger.using(Use("teacher", DRAWING)), teacher.same_text(network):
            teacher.guided(network, noises[0], times, text, null, guidance)
        try:
            with ledger.using(Use(STUDENT, DRAWING)), trainer.exported_student() as student, trainer.autocast():
                latents = trainer.method.draw(student, noises, text)
        except DataDependentOutputException:
            return None
        if decoder is not None:
            with ledger.using(Use(AUTOENCODER, DRAWING)):
                ledger.bump({ledger.use: decoder})
            return ledger.peak
        decoding = mock.patch.object(functional, "scaled_dot_product_attention", attention)
        with ledger.using(Use(AUTOENCODER, DRAWING)), trainer.autocast(), decoding:
            measures_of(teacher.decode(latents[:1]))
        teacher.unload("vae")
        return ledger.peak
