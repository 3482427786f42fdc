"""What is Stable Diffusion XL's own: its UNet is told of the original picture's size and of its crop."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.picture_sizes import PictureSizes
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import UsageError
from ddx.teachers.registry import load_teacher
from distill_runs import run
from tiny import Tiny, open_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return Tiny("sdxl").make(tmp_path_factory.mktemp("sdxl") / "pipeline")


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Pictures of several sizes and their mirror images: 200 x 100, 64 x 160, 64 x 64, 130 x 130."""
    place, random, images = tmp_path_factory.mktemp("store"), np.random.default_rng(0), []
    for width, height in ((200, 100), (64, 160), (64, 64), (130, 130)):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    pq.write_table(pa.table({"image": images, "caption": ["cat"] * 4}), place / "pictures.parquet")
    config = PrecomputeConfig(teacher=str(folder), device="cpu", resolution=64, flip=True, out=place / "pictures.zarr")
    return Store(precompute(config, [str(place / "pictures.parquet")]))


def test_the_sizes_are_those_of_the_originals(store: Store) -> None:
    batch = next(Loader(store, 4, seed=0))
    rows = torch.arange(4)
    sizes = PictureSizes(store).of(rows, torch.zeros(4, dtype=torch.bool), (64, 64))
    assert sizes.tolist() == [[100, 200, 0, 32], [160, 64, 48, 0], [64, 64, 0, 0], [130, 130, 0, 0]]
    mirrored = PictureSizes(store).of(rows, torch.ones(4, dtype=torch.bool), (64, 64))
    assert torch.equal(mirrored, sizes)  # crops of the middle
    assert batch.rows.shape == (4,)


def test_the_network_sees_what_the_pipeline_shows_it(folder: Path) -> None:
    teacher, pipeline = load_teacher(folder), open_pipeline(folder)
    seen: list[Any] = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    asked = {"num_inference_steps": 1, "guidance_scale": 3.0, "height": 64, "width": 96, "output_type": "latent"}
    pipeline("cat", original_size=(100, 200), crops_coords_top_left=(0, 32), **asked)
    hook.remove()
    (condition,) = teacher.encode_text(["cat"])
    network = teacher.network()
    network.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    x, t = torch.zeros(1, 4, 8, 12), torch.tensor(500.0, dtype=torch.float64)
    told = condition.with_sizes(torch.tensor([[100.0, 200.0, 0.0, 32.0]]))
    teacher.guided(network, x, t, told, teacher.null_condition(), 3.0)
    assert torch.equal(seen[0], seen[1]) and seen[0].tolist() == 2 * [[100, 200, 0, 32, 64, 96]]
    with torch.no_grad():
        assert (teacher.predict(network, x, t, told) - teacher.predict(network, x, t, condition)).abs().max() > 1e-5


def test_real_sizes_train_and_other_teachers_refuse_them(
    folder: Path, store: Store, tmp_path: Path, stable_diffusion_folder: Path
) -> None:
    settings: dict[str, Any] = {"train_steps": 2, "checkpoint_every": 0, "method": "lcm", "guidance_min": 5.0}
    settings["guidance_max"] = 5.0
    fixed = run(folder, store.path, tmp_path / "fixed", **settings)
    real = run(folder, store.path, tmp_path / "real", picture_sizes="real", **settings)
    losses = [(student / "metrics.jsonl").read_text() for student in (fixed, real)]
    assert losses[0] != losses[1]
    with pytest.raises(UsageError, match="told no sizes"):
        run(stable_diffusion_folder, None, tmp_path / "other", picture_sizes="real", **settings)
