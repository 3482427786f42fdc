from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddx.errors import UsageError
from ddx.scenes import dataset
from ddx.scenes.captions import parse_caption, split_of
from ddx.scenes.checker import score
from ddx.scenes.dataset import write_parquet


def test_rows_hold_pictures_of_their_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS_PER_GROUP", 16)
    table = pq.read_table(write_parquet(tmp_path / "new" / "scenes.parquet", 40, seed=2, split="held-out")).to_pydict()
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"]])
    assert score(images, table["caption"])["overall"] >= 0.99
    assert len({image.tobytes() for image in images}) == 40
    assert {split_of(parse_caption(caption)) for caption in table["caption"]} == {"held-out"}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = (write_parquet(tmp_path / f"{n}.parquet", 8, seed=n // 2) for n in range(3))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rows=0"):
        write_parquet(tmp_path / "none.parquet", 0)
