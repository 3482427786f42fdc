"""A store of pictures that the teacher drew: captions are enough, and the noise of every row is known again."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.merge import merge
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import UsageError
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.registry import load_teacher
from ddx.teachers.samplers.sampler import TeacherSampler
from stores import CAPTIONS, shard_bytes
from watchdog import wait_until

from .conftest import Ddx

BLANK = 5
NUM_ROWS = 11
STEPS, GUIDANCE = 3, 1.5


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "captions.parquet"
    texts = ["" if row == BLANK else f"{CAPTIONS[row % len(CAPTIONS)]} {row}" for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"caption": texts}), path)
    return path


@pytest.fixture(scope="module")
def drawing(config: PrecomputeConfig) -> PrecomputeConfig:
    return replace(config, synthetic=True, synthetic_steps=STEPS, synthetic_guidance=GUIDANCE)


@pytest.fixture(scope="module")
def store(drawing: PrecomputeConfig, captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precompute(replace(drawing, out=tmp_path_factory.mktemp("drawn") / "drawn.zarr"), [str(captions)])


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return load_teacher(str(teacher_folder), device="cpu")


def rows_of(store: Path | Store, num: int) -> dict[int, Any]:
    """Latents and conditions by row, through the loader."""
    loader = Loader(store, 2, seed=0)
    found = {}
    for batch in islice(loader, num):
        for place, row in enumerate(batch.rows.tolist()):
            found[row] = (batch.latents[place], batch.condition.index(place))
    loader.close()
    return found


def assert_drawn(
    teacher: Teacher, store: Path, row: int, latents: torch.Tensor, condition: Condition, guidance: float = GUIDANCE
) -> None:
    """The stored latents are where the teacher's solver takes the noise that the store says was the row's."""
    noise = Store(store).noise(torch.tensor([row]))
    expected = teacher.sample(
        condition.to(dtype=torch.float32), teacher.null_condition(), num_steps=STEPS, guidance=guidance, noise=noise
    )
    torch.testing.assert_close(teacher.scale(latents.float()), expected[0], rtol=2e-3, atol=2e-3)


def test_every_row_is_what_the_teacher_draws_from_its_noise(store: Path, teacher: Teacher) -> None:
    found = rows_of(store, 30)
    assert sorted(found) == [row for row in range(NUM_ROWS) if row != BLANK]
    for row, (latents, condition) in found.items():
        assert_drawn(teacher, store, row, latents, condition)
    noises = Store(store).noise(torch.tensor(sorted(found)))
    assert len({tuple(noise.flatten()[:4].tolist()) for noise in noises}) == len(found)  # each row has its own


def test_the_store_says_what_it_is(store: Path, teacher: Teacher) -> None:
    opened = Store(store)
    assert opened.synthetic_share == 1.0 and opened.summary()["synthetic_share"] == 1.0
    how = {"steps": STEPS, "guidance": GUIDANCE, "seed": 0, "network": teacher.network_identity()}
    assert opened.attributes["settings"]["synthetic"] == how
    rows = opened.rows_table().to_pylist()
    assert [row["status"] for row in rows] == ["no_caption" if n == BLANK else "ok" for n in range(NUM_ROWS)]
    assert {row["source"] for row in rows if row["status"] == "ok"} == {teacher.name}


def test_another_sampler_makes_another_store(
    store: Path, drawing: PrecomputeConfig, captions: Path, teacher: Teacher, tmp_path: Path
) -> None:
    out = tmp_path / "heun.zarr"
    by_heun = replace(drawing, out=out, synthetic_sampler="heun")
    precompute(by_heun, [str(captions)])
    opened, own = Store(out), rows_of(store, 20)
    assert opened.attributes["settings"]["synthetic"]["sampler"] == "heun"
    for row, (latents, condition) in rows_of(out, 20).items():
        expected = teacher.sample(
            condition.to(dtype=torch.float32),
            teacher.null_condition(),
            num_steps=STEPS,
            guidance=GUIDANCE,
            noise=opened.noise(torch.tensor([row])),
            sampler=TeacherSampler(name="heun"),
        )
        torch.testing.assert_close(teacher.scale(latents.float()), expected[0], rtol=2e-3, atol=2e-3)
        assert not torch.allclose(latents, own[row][0], atol=0.05)
    with pytest.raises(UsageError, match="synthetic"):
        precompute(replace(drawing, out=out), [str(captions)])
    with pytest.raises(UsageError, match="ddpm cannot draw"):
        precompute(replace(drawing, out=tmp_path / "no.zarr", synthetic_sampler="ddpm"), [str(captions)])
    assert not (tmp_path / "no.zarr").exists()


def test_another_seed_draws_other_pictures_of_the_same_captions(
    store: Path, drawing: PrecomputeConfig, captions: Path, tmp_path: Path
) -> None:
    other = precompute(replace(drawing, out=tmp_path / "other.zarr", synthetic_seed=1), [str(captions)])
    first, second = rows_of(store, 20), rows_of(other, 20)
    for row in first:
        assert torch.equal(first[row][1].tokens, second[row][1].tokens)
        assert not torch.allclose(first[row][0], second[row][0], atol=0.1)
    with pytest.raises(UsageError, match="synthetic"):
        precompute(replace(drawing, out=tmp_path / "other.zarr"), [str(captions)])


def test_killed_it_ends_with_the_same_bytes(
    ddx: Ddx, store: Path, teacher_folder: Path, captions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed.zarr"
    line = ("precompute", captions, "--teacher", teacher_folder, "--out", out, "--device", "cpu", "--synthetic")
    sizes = ("--part-rows", 4, "--batch-size", 3, "--synthetic-steps", STEPS, "--synthetic-guidance", GUIDANCE)
    process = ddx(*line, *sizes)
    wait_until(lambda: any((out / "_ddx" / "commit").glob("*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert main.run([str(word) for word in (*line, *sizes)]) == 0
    assert shard_bytes(out) == shard_bytes(store)


def test_real_and_synthetic_rows_make_one_store_whose_share_is_known(
    store: Path, pairs: Path, config: PrecomputeConfig, teacher: Teacher, tmp_path: Path
) -> None:
    real = precompute(replace(config, out=tmp_path / "real.zarr"), [str(pairs)])
    assert Store(real).synthetic_share == 0.0 and "synthetic_share" not in Store(real).summary()
    with pytest.raises(ValueError, match="not drawn by a teacher"):
        Store(real).noise(torch.tensor([0]))
    merged = merge([str(real), str(store)], tmp_path / "merged.zarr")
    num_real, num_drawn = Store(real).num_ok, Store(store).num_ok
    assert Store(merged).synthetic_share == num_drawn / (num_real + num_drawn)
    first = Store(merged).segments[1].first_part * 4
    drawn = {row: found for row, found in rows_of(merged, 60).items() if row >= first}
    assert len(drawn) == num_drawn  # its rows are called otherwise now, and their noise is the same
    for row, (latents, condition) in drawn.items():
        assert_drawn(teacher, merged, row, latents, condition)


@pytest.mark.parametrize(
    ("flags", "says", "cure"),
    [
        (("--synthetic", "--flip"), "the teacher draws the pictures", "leave --flip away"),
        (("--synthetic", "--max-aspect", "2"), "the teacher draws the pictures", "leave --max-aspect away"),
        (("--synthetic-steps", "4"), "for pictures that the teacher draws", "add --synthetic"),
        (("--synthetic", "--synthetic-steps", "0"), "at least 1", "20 is usual"),
        ((), "no image column", "--synthetic"),
    ],
)
def test_what_makes_no_sense_is_refused(
    flags: tuple[str, ...],
    says: str,
    cure: str,
    captions: Path,
    teacher_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["precompute", str(captions), "--teacher", str(teacher_folder), "--workspace", str(tmp_path)]
    assert main.run([*line, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and cure in error


def test_a_dry_run_measures_the_drawing(
    captions: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["precompute", str(captions), "--teacher", str(teacher_folder), "--workspace", str(tmp_path), "--synthetic"]
    assert main.run([*line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "captions-sana-64-synthetic.zarr" in said and "estimated_seconds" in said


def test_a_folder_of_pictures_is_no_list_of_captions(drawing: PrecomputeConfig, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("a picture")
    with pytest.raises(UsageError, match="takes captions from tables and lists"):
        precompute(replace(drawing, out=tmp_path / "out.zarr"), [str(tmp_path / "pictures")])
