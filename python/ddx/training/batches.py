"""The batches of a distillation: each rank's rows of the global ones, with the random numbers that are theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ddx.data.loader import Loader
from ddx.device import send
from ddx.methods.base import Batch
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.training.run import Run

TEXT_STEP = 64  # tokens to whose multiples texts are padded, where few shapes are worth more than short texts


def batches(run: Run, position: int) -> Iterator[Any]:
    """Yield this rank's rows of the global batches from `position` on, for ever."""
    loader = Loader(
        run.store,
        run.config.batch_size,
        seed=run.config.seed,
        rank=run.ranks.rank,
        world=run.ranks.world,
        position=position,
        prefetch=run.config.prefetch,
    )
    try:
        yield from loader
    finally:
        loader.close()


def micro_batches(run: Run, data: Any, step: int) -> Iterator[Batch]:
    """Yield this rank's rows as batches of at most `micro_batch_size`, with the random numbers that are theirs."""
    device, rows = run.ranks.device, len(data.latents)
    first = run.ranks.rank * run.rows_per_rank
    size = run.config.micro_batch_size or rows
    x0 = run.teacher.scale(send(data.latents, device).float())
    # float32 like the latents: on a CPU, autocast refuses to join the store's float16 to anything.
    condition = data.condition.to(device, torch.float32)
    if run.teacher.text_is_masked and (run.config.compile or run.config.cuda_graphs):
        condition = condition.pad(-(-condition.tokens.shape[1] // TEXT_STEP) * TEXT_STEP)
    if run.sizes is not None:
        height, width = (side * run.teacher.compression for side in x0.shape[2:])
        sizes = run.sizes.of(data.rows, data.flipped, (height, width))
        condition = condition.with_sizes(send(sizes, device))
    noise = send(run.store.noise(data.rows), device) if run.method.reads_pairs else None
    neighbour: Tensor | None = None
    if run.method.reads_neighbours and run.config.batch_size > 1:  # a row alone has no other one
        neighbour = run.ranks.rolled(x0)
    captions = None if run.captions is None else run.captions.of(data.rows, data.captions)
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        indices = range(first + part.start, first + part.stop)
        yield Batch(
            x0=x0[part],
            condition=condition.index(part),
            null=run.null,
            random=RandomNumbers(run.config.seed, step, indices, device),
            step=step,
            progress=step / run.config.train_steps,
            noise=None if noise is None else noise[part],
            neighbour=None if neighbour is None else neighbour[part],
            captions=None if captions is None else captions[part],
        )
