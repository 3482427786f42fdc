"""Batches are the rows of the store, in an order that a seed and a position decide alone."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader, StoredBatch
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import DdxError, UsageError

OK = [0, 1, 2, 4, 6, 7, 8, 10, 11, 12, 13]


@pytest.fixture(scope="module")
def store(teacher_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "pairs.zarr"
    config = PrecomputeConfig(teacher=str(teacher_folder), out=out, part_rows=4, batch_size=4, device="cpu")
    return precompute(config, [str(pairs)])


def take(store: Path, num: int, **options: int) -> list[StoredBatch]:
    loader = Loader(store, **{"batch_size": 4, "seed": 1, **options})
    batches = list(islice(loader, num))
    assert loader.position == options.get("position", 0) + num
    loader.close()
    return batches


def equal(left: StoredBatch, right: StoredBatch) -> bool:
    pairs = ((left.latents, right.latents), (left.rows, right.rows), (left.condition.mask, right.condition.mask))
    return all(torch.equal(a, b) for a, b in (*pairs, (left.condition.tokens, right.condition.tokens)))


def test_batches_hold_what_zarr_reads(store: Path) -> None:
    group = zarr.open_group(str(store), mode="r")
    latents, tokens, offset, length = (group[n][:] for n in ("latents", "text/tokens", "text/offset", "text/length"))
    for batch in take(store, 6):
        assert batch.latents.dtype == batch.condition.tokens.dtype == torch.float16
        assert batch.condition.tokens.shape[1] == length[batch.rows].max()
        for sample, row in enumerate(batch.rows.tolist()):
            assert np.array_equal(batch.latents[sample].numpy(), latents[row])
            expected = tokens[offset[row] : offset[row] + length[row]]
            assert np.array_equal(batch.condition.tokens[sample, : length[row]].numpy(), expected)
            assert not batch.condition.tokens[sample, length[row] :].any()
            assert batch.condition.mask[sample].sum() == length[row]


def test_an_epoch_holds_every_ok_row_once(store: Path) -> None:
    rows = torch.cat([batch.rows for batch in take(store, 11)]).tolist()
    assert Counter(rows) == dict.fromkeys(OK, 4)
    assert sorted(rows[:11]) == OK
    assert rows[:11] != rows[11:22]


def test_seed_and_position_decide(store: Path) -> None:
    whole = take(store, 8)
    assert all(map(equal, whole, take(store, 8)))
    assert all(map(equal, whole[5:], take(store, 3, position=5)))
    assert not torch.equal(whole[0].rows, take(store, 1, seed=2)[0].rows)


def test_ranks_share_one_global_batch(store: Path) -> None:
    ranks = [take(store, 5, rank=rank, world=2) for rank in range(2)]
    for whole, first, second in zip(take(store, 5), *ranks, strict=True):
        assert torch.equal(whole.rows, torch.cat([first.rows, second.rows]))
        assert torch.equal(whole.latents, torch.cat([first.latents, second.latents]))
        assert torch.equal(whole.condition.tokens, torch.cat([first.condition.tokens, second.condition.tokens]))
    with pytest.raises(UsageError, match="batch_size = 4"):
        take(store, 1, world=3)


def test_a_damaged_shard_is_named(store: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(store, tmp_path / "copy.zarr")
    shard = copy / "latents" / "c.2.0.0.0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DdxError, match=r"latents/c\.2\.0\.0\.0 is damaged") as caught:
        take(copy, 3)
    assert "ddx precompute" in str(caught.value.hint)


def test_an_unfinished_store_is_refused(store: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(store, tmp_path / "copy.zarr")
    (copy / "rows.parquet").unlink()
    with pytest.raises(DdxError, match="not complete"):
        Loader(copy, 4, seed=0)
    assert not Store(copy).is_complete
    with pytest.raises(UsageError, match="no store"):
        Store(tmp_path / "nowhere.zarr")


def test_it_is_a_data_set_for_torchs_own_loader(store: Path) -> None:
    through = torch.utils.data.DataLoader(Loader(store, 4, seed=1), batch_size=None)
    assert all(equal(left, right) for left, right in zip(islice(through, 4), take(store, 4), strict=True))
