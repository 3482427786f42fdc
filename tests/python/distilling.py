"""Batches and trainers over tiny random-weight teachers, for the tests of methods and training."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ddx.methods.base import Batch
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.parts.random_numbers import RandomNumbers
from ddx.methods.registry import load_method, method_spec
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.trainer import Trainer
from pipelines import make_sana, make_stable_diffusion

CAPTIONS = ("a red circle", "a cat and a dog", "two small green squares", "a house below the light")
KINDS = ("flow", "eps", "v")
# a student that rests for the first steps of a run would be where it began
AT_ONCE: dict[str, dict[str, Any]] = {"sida": {"warmup_share": 0.0}}


def in_turns(names: Iterable[str], others: Sequence[str] = KINDS, *, first: int = 0) -> list[tuple[str, str]]:
    """Each name once, with the others in turns from number `first` on.

    Tests of one file that begin with different numbers show each name to each of the others between them.
    """
    return [(name, others[(number + first) % len(others)]) for number, name in enumerate(names)]


def make_teacher(kind: str, folder: Path) -> Teacher:
    if kind == "flow":
        make_sana(folder)
    else:
        make_stable_diffusion(folder, "epsilon" if kind == "eps" else "v_prediction")
    return load_teacher(folder)


@functools.cache
def captions_of(teacher: Teacher) -> tuple[Condition, Condition]:
    """The captions, and the null condition."""
    return Condition.cat(teacher.encode_text(CAPTIONS)), teacher.null_condition()


def make_batch(teacher: Teacher, step: int = 0, *, rows: slice = slice(0, 4), seed: int = 0) -> Batch:
    """The same four latents and captions at every step, with that step's noise."""
    x0 = torch.randn(4, *teacher.latent_shape(), generator=torch.Generator().manual_seed(7))
    condition, null = captions_of(teacher)
    indices = range(rows.start, rows.stop)
    return Batch(
        x0=x0[rows],
        condition=condition.index(rows),
        null=null,
        random=RandomNumbers(seed, step, indices),
        step=step,
        neighbour=x0.roll(1, 0)[rows],
    )


def make_trainer(
    teacher: Teacher,
    method_config: Any = None,
    *,
    method: str = "lcm",
    discriminator: AddedDiscriminatorConfig | None = None,
    ranks: Ranks | None = None,
    **settings: Any,
) -> Trainer:
    values: dict[str, Any] = {
        "batch_size": 4,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
    }
    spec = method_spec(method)
    if spec.method.defaults.get("optimizer") == "came":  # its first steps are too long without a warm-up
        values["optimizer"] = "radam"
    config = DistillConfig(**{**spec.method.defaults, **values, **settings})
    made = load_method(method, method_config or spec.config(**AT_ONCE.get(method, {})), teacher, discriminator)
    return Trainer(made, config, ranks or Ranks(), torch.float32)


def assert_gradients_reach_their_networks(trainer: Trainer, *silent: str) -> None:
    """Each turn trains every parameter of its networks, but those that end in `silent`, and nothing else."""
    teacher = trainer.method.teacher
    for turn in trainer.method.turns(0)[-2:]:
        trainer._accumulate(turn, [make_batch(teacher)])
        for key, trained in trainer.trained.items():
            grads = {n: p.grad for n, p in trained.named}
            if key not in turn.trains:
                assert all(g is None for g in grads.values()), key
                continue
            missing = [n for n, g in grads.items() if g is None or not g.any()]
            assert [n for n in missing if not n.endswith(silent)] == [], key
            for p in trained.parameters:
                p.grad = None
    assert all(p.grad is None for p in teacher.network().parameters())


def read_meter(trainer: Trainer) -> dict[str, float | None]:
    return trainer.meter.read(lambda value: value)


def make_store(
    teacher_folder: Path, folder: Path, *, rows: int = 24, resolution: int | None = None, several: bool = False
) -> Path:
    """A real store of generated pictures, made by precompute for the teacher in `teacher_folder`.

    several: two captions a row, the second begins with "the light".
    """
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from ddx.data.config import PrecomputeConfig
    from ddx.data.precompute import precompute

    random = np.random.default_rng(0)
    images = []
    for _ in range(rows):
        coarse = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BILINEAR).save(buffer, "PNG")
        images.append(buffer.getvalue())
    captions = [CAPTIONS[row % len(CAPTIONS)] for row in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    parquet = folder / "pictures.parquet"
    columns = {"caption": captions, "other": [f"the light {text}" for text in captions]}
    pq.write_table(pa.table({"image": images, **columns}), parquet)
    out = folder / "pictures.zarr"
    named = ("caption", "other") if several else ()
    config = PrecomputeConfig(
        teacher=str(teacher_folder), out=out, part_rows=rows, resolution=resolution, caption_column=named
    )
    return precompute(config, [str(parquet)])
