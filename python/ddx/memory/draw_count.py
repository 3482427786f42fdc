"""What a component of a pipeline takes of a GPU while it draws, counted on tensors without data.

The component runs as it does in a drawing, kept as a `Keeping` says, twice: the second time the next layer comes in
while one computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from ddx.errors import UsageError
from ddx.memory.fake_gpu import GPU, fake_gpu
from ddx.memory.ledger import Ledger, Use
from ddx.memory.no_values import lengths
from ddx.offload.keeping import TURNS, Keeping, coding_parts, keep
from ddx.offload.tables import LARGE
from ddx.offload.turns import tensors_of
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.encoder_sizes import encoder_parts, encoder_without_weights
from ddx.teachers.families.table import FAMILIES, Family
from ddx.teachers.size import Size

VAE = "vae"


@dataclass(frozen=True)
class Count:
    """Bytes: the peak of a component, its weights, and of these the tables that it looks rows up in.

    first: the peak of the first pass, in which no layer comes in ahead. moved: the weights that a drawing uses, which
    of an autoencoder are those of its decoder.
    """

    peak: int
    weights: int
    tables: int
    first: int
    moved: int


class DrawCounter:
    """Counts the components of one pipeline at one size; what is counted once is remembered."""

    def __init__(self, teacher: Teacher, *, guided: bool, size: Size | None = None, rows: int = 1) -> None:
        """teacher: opened for `GPU`, nothing loaded. guided: two halves of guidance. rows: pictures in a batch."""
        self.teacher, self.guided, self.size, self.rows = teacher, guided, size, rows
        self.encoders = encoder_parts(teacher)
        self.parts = (*self.encoders, teacher.denoiser_part, VAE)
        self._counted: dict[tuple[Any, ...], Count] = {}

    def count(
        self,
        part: str,
        how: str,
        maps: int | None = None,
        *,
        fp8: bool = False,
        tables: bool = True,
        limit: float = math.inf,
    ) -> Count:
        """Return what a component takes; a count that passes `limit` ends there, and its peak is the least it takes.

        maps, fp8: see `Keeping`. tables: whether an encoder's tables stay on the host where it is offloaded.
        """
        key = (part, how, maps, fp8, tables)
        if key not in self._counted:
            found, is_whole = self._count(part, Keeping(parts={part: how}, maps=maps, fp8=fp8, tables=tables), limit)
            if not is_whole:
                return found
            self._counted[key] = found
        return self._counted[key]

    def _count(self, part: str, keeping: Keeping, limit: float) -> tuple[Count, bool]:
        ledger = DeviceLedger(limit)
        first, is_whole = 0, True
        try:
            with fake_gpu(), lengths(self._longest), ledger:
                network = self._network(part)
                weights = sum(_num_bytes(value) for value in network.parameters())
                used = coding_parts(network, "decode") if part == VAE else (network,)
                moved = sum(map(_num_bytes, tensors_of(used)))
                tables = [value.weight for value in network.modules() if isinstance(value, nn.Embedding)]
                large = sum(size for size in map(_num_bytes, tables) if size >= LARGE)
                keep({part: network}, keeping, GPU)
                with GPU:
                    run = self._run(part, network)
                    run()
                    first = ledger.peak.num_bytes
                    if keeping.parts[part] != TURNS:
                        run()
        except OverLimitError:
            is_whole = False
        except DataDependentOutputException as error:
            raise UsageError(
                f"what the {part} of {self.teacher.name} takes cannot be counted: it reads values on its way",
                hint="leave --memory away, or give --device cpu",
            ) from error
        finally:
            self.teacher.unload()
        large = large if part in self.encoders else 0
        return Count(ledger.peak.num_bytes, weights, large, first, moved), is_whole

    def _network(self, part: str) -> nn.Module:
        if part in self.encoders:
            return encoder_without_weights(self.teacher, part)
        return self.teacher.vae() if part == VAE else self.teacher.network()

    def _run(self, part: str, network: Any) -> Callable[[], Any]:
        teacher, shape = self.teacher, self.teacher.latent_shape(self.size)
        if part == VAE:
            latents = torch.empty(self.rows, *shape, dtype=teacher.vae_dtype)
            return lambda: _as_picture(teacher._decode_latents(latents))  # the factors may be among the weights
        if part in self.encoders:
            ids = torch.ones(self.rows, self._num_tokens(network), dtype=torch.long)
            return lambda: network(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        rows = self.rows * (2 if self.guided and teacher.doubles_batch else 1)
        x_t, t = torch.empty(rows, *shape), torch.ones(rows, dtype=torch.float64)
        pooled = None if teacher.pooled_width is None else torch.empty(rows, teacher.pooled_width)
        words = torch.empty(rows, self._longest, teacher.text_width)
        mask = torch.ones(rows, self._longest, dtype=torch.bool)
        text = Condition(words, mask, pooled, counts=(self._longest,) * rows)
        return lambda: teacher.predict(network, x_t, t, text)

    def _num_tokens(self, network: Any) -> int:
        if "CLIP" in type(network).__name__:
            return int(network.config.max_position_embeddings)
        return self._longest + self._family.instruction_tokens

    @property
    def _longest(self) -> int:
        return self._family.text_tokens

    @property
    def _family(self) -> Family:
        return next(family for family in FAMILIES if family.name == self.teacher.family)


class OverLimitError(Exception):
    """More is alive than was to be counted."""


class DeviceLedger(Ledger):
    """Counts what is on the GPU, and ends above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def enter(self, value: Tensor, use: Use | None = None) -> None:
        """See `Ledger.enter`."""
        if value.device.type == GPU.type:
            super().enter(value, use)
            if self.now > self.limit:
                raise OverLimitError


def _as_picture(pixels: Tensor) -> Tensor:
    return (pixels * 0.5 + 0.5).clamp(0, 1)


def _num_bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
