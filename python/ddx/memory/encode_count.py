"""What the networks of `ddx precompute` take of a GPU, counted on tensors without data.

A store's rows go through them in two stages that take turns: the captions of a part through the text encoders, and its
pictures through the autoencoder, or through the denoiser that draws them. Each runs the code of the run itself, with
captions as long as the family reads and pictures of the largest bucket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from ddx.data.buckets import Bucket, make_buckets
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute.encode import LatentBatches
from ddx.errors import UsageError
from ddx.memory.draw_count import VAE, Count, DeviceLedger, OverLimitError
from ddx.memory.fake_gpu import GPU, fake_gpu
from ddx.memory.no_values import lengths
from ddx.offload.keeping import LEAVES, TURNS, Keeping, coding_parts, keep
from ddx.offload.tables import LARGE
from ddx.offload.turns import tensors_of
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.encoder_sizes import encoder_parts, encoder_without_weights
from ddx.teachers.families.table import FAMILIES, Family
from ddx.teachers.parts.batches import ROWS


@dataclass(frozen=True)
class TextCount:
    """Bytes that the text encoders take, and their weights.

    peak: with `ROWS` captions. a_caption: the embeddings of each further one. left: what stays on the device for the
    next captions. tables: of the weights, those that rows are looked up in.
    """

    peak: int
    a_caption: int
    left: int
    weights: int
    tables: int

    def with_captions(self, number: int) -> int:
        """Return the peak with a number of captions at once."""
        return self.peak + max(number - ROWS, 0) * self.a_caption


class EncodeCounter:
    """Counts the networks of one precompute; what is counted once is remembered."""

    def __init__(self, teacher: Teacher, config: PrecomputeConfig) -> None:
        """teacher: opened for `GPU`, nothing loaded."""
        self.teacher, self.config = teacher, config
        self.encoders = encoder_parts(teacher)
        self.painter = teacher.denoiser_part if config.synthetic else VAE
        size = config.resolution or teacher.default_resolution
        buckets = make_buckets(teacher, size, config.max_aspect, config.bucket_step)
        self.bucket: Bucket = max(buckets, key=lambda bucket: bucket.width * bucket.height)
        self._instructions: dict[str, Callable[..., list[int]] | None] = {}  # tokenizers' `encode`, where they are here
        self._texts: dict[tuple[str, ...], TextCount] = {}
        self._pictures: dict[tuple[Any, ...], Count] = {}

    def texts(self, how: Mapping[str, str], *, limit: float = math.inf) -> TextCount:
        """Return what the text encoders take, kept so; a count that passes `limit` ends there, and is the least."""
        key = tuple(how.values())
        if key not in self._texts:
            found, is_whole = self._count_texts(how, limit)
            if not is_whole:
                return found
            self._texts[key] = found
        return self._texts[key]

    def pictures(self, how: str, rows: int, *, maps: int | None = None, limit: float = math.inf) -> Count:
        """Return what encodes or draws pictures takes, `rows` in a batch; `limit` as above, `maps` as in `Keeping`."""
        key = (how, rows, maps)
        if key not in self._pictures:
            found, is_whole = self._count_pictures(how, rows, maps, limit)
            if not is_whole:
                return found
            self._pictures[key] = found
        return self._pictures[key]

    def weights_of_encoders(self) -> dict[str, int]:
        """Return the bytes of each text encoder's weights."""
        with fake_gpu():
            return {part: _sizes([encoder_without_weights(self.teacher, part)])[0] for part in self.encoders}

    # the two stages

    def _count_texts(self, how: Mapping[str, str], limit: float) -> tuple[TextCount, bool]:
        teacher, ledger = self.teacher, DeviceLedger(limit)
        each = left = 0
        is_whole = True
        try:
            with fake_gpu(), lengths(self._family.text_tokens), ledger:
                networks = {part: encoder_without_weights(teacher, part) for part in self.encoders}
                weights, tables = _sizes(networks.values())
                for part, network in networks.items():
                    teacher.use_part(part, network)
                    self._use_words(part, network)
                    if not (teacher.folder / part / "config.json").is_file():
                        teacher.use_part(f"config of {part}", {})
                turns = keep(networks, Keeping(parts=how), GPU)
                before = ledger.now
                texts: list[Condition] = []
                for _ in range(2 if LEAVES in how.values() else 1):
                    texts.clear()
                    texts = teacher.encode_text([""] * ROWS)
                each = -(-sum(_num_bytes(v) for text in texts for v in (text.tokens, text.pooled)) // ROWS)
                del texts
                turns.enter(())
                left = ledger.now - before
        except OverLimitError:
            is_whole = False
        except DataDependentOutputException as error:
            raise self._not_counted("text encoders") from error
        finally:
            teacher.unload()
        return TextCount(ledger.peak.num_bytes, each, left, weights, tables), is_whole

    def _use_words(self, part: str, encoder: Any) -> None:
        """Give the teacher a tokenizer without a vocabulary."""
        name = part.replace("text_encoder", "tokenizer")
        if part not in self._instructions:
            here = (self.teacher.folder / name).is_dir()
            self._instructions[part] = self.teacher.tokenizer(name).encode if here else None
        longest = (
            encoder.config.max_position_embeddings if "CLIP" in type(encoder).__name__ else self._family.text_tokens
        )
        self.teacher.use_part(name, _Words(longest, self._family.instruction_tokens, self._instructions[part]))

    def _count_pictures(self, how: str, rows: int, maps: int | None, limit: float) -> tuple[Count, bool]:
        teacher, ledger, part = self.teacher, DeviceLedger(limit), self.painter
        first, is_whole = 0, True
        try:
            with fake_gpu(), lengths(self._family.text_tokens), ledger:
                network = teacher.vae() if part == VAE else teacher.network()
                weights, _ = _sizes([network])
                used = coding_parts(network, "encode") if part == VAE else [network]
                moved = sum(map(_num_bytes, tensors_of(used)))
                keep({part: network}, Keeping(parts={part: how}, maps=maps, coding="encode"), GPU)
                run = self._encodes(rows) if part == VAE else self._draws(network, rows)
                run()
                first = ledger.peak.num_bytes
                if how != TURNS:
                    run()
        except OverLimitError:
            is_whole = False
        except DataDependentOutputException as error:
            raise self._not_counted(part) from error
        finally:
            teacher.unload()
        return Count(ledger.peak.num_bytes, weights, 0, first, moved), is_whole

    def _encodes(self, rows: int) -> Callable[[], Any]:
        bucket, config = self.bucket, self.config
        images = torch.empty(rows, bucket.height, bucket.width, 3, dtype=torch.uint8)
        last: list[LatentBatches] = []  # whose latents are still on the device, as in the run

        def encode() -> None:
            batches = LatentBatches(self.teacher, flip=config.flip, posterior=config.posterior)
            batches.add(range(rows), images, bucket)
            last[:] = [batches]

        return encode

    def _draws(self, network: nn.Module, rows: int) -> Callable[[], Any]:
        teacher, long = self.teacher, self._family.text_tokens
        guidance = self.config.synthetic_guidance
        guidance = teacher.default_guidance if guidance is None else guidance

        def text(num: int) -> Condition:
            pooled = None if teacher.pooled_width is None else torch.empty(num, teacher.pooled_width, device=GPU)
            mask = torch.ones(num, long, dtype=torch.bool, device=GPU)
            words = torch.empty(num, long, teacher.text_width, device=GPU)
            return Condition(words, mask, pooled, counts=(long,) * num)

        def draw() -> None:
            x = torch.empty(rows, *self.bucket.latent_shape, device=GPU)
            teacher.guided(network, x, torch.ones(rows, dtype=torch.float64, device=GPU), text(rows), text(1), guidance)

        return draw

    def _not_counted(self, what: str) -> UsageError:
        return UsageError(
            f"what the {what} of {self.teacher.name} take cannot be counted: they read values on their way",
            hint="leave --memory away",
        )

    @property
    def _family(self) -> Family:
        return next(family for family in FAMILIES if family.name == self.teacher.family)


class _Words:
    """A tokenizer without a vocabulary, whose texts are all as long as the encoder reads."""

    pad_token_id = 0
    padding_side = "right"

    def __init__(self, longest: int, before: int, encode: Callable[..., list[int]] | None) -> None:
        """before: tokens of what a family puts before a text; `encode` gives them where the tokenizer is here."""
        self.model_max_length, self._before, self._encode = longest, before, encode

    def __call__(self, texts: Sequence[str], *, max_length: int, return_tensors: str | None = None, **_: Any) -> Any:
        if return_tensors is None:
            return {"input_ids": [[1] * max_length for _ in texts]}
        ids = torch.ones(len(texts), max_length, dtype=torch.long)
        return _Found(ids, torch.ones_like(ids))

    def encode(self, text: str, **_: Any) -> list[int]:
        """Return as many tokens as what a family puts before a text has."""
        return [1] * (self._before + 1 if self._encode is None else len(self._encode(text)))

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        """Return any text."""
        return ""


@dataclass(frozen=True)
class _Found:
    input_ids: Tensor
    attention_mask: Tensor


def _sizes(networks: Any) -> tuple[int, int]:
    """Return the bytes of the weights of some networks, and of these the tables that may stay on the host."""
    networks = list(networks)
    tables = {id(m.weight): m.weight for n in networks for m in n.modules() if isinstance(m, nn.Embedding)}
    large = sum(size for size in map(_num_bytes, tables.values()) if size >= LARGE)
    return sum(_num_bytes(value) for network in networks for value in network.parameters()), large


def _num_bytes(value: Tensor | None) -> int:
    return 0 if value is None else value.numel() * value.element_size()
