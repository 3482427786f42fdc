"""Variances of Analytic-DPM on a store: measured once, kept beside it, and part of what is drawn by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddx.cli import main
from ddx.data import variances
from ddx.data.config import PrecomputeConfig
from ddx.data.loader import Loader
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.data.variances import StoreVariances
from ddx.errors import UsageError
from ddx.sampling.teacher import draw_with_teacher
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.teachers.samplers.sampler import TeacherSampler
from stores import CAPTIONS

TIMES = [0.9, 0.5, 0.1]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "captions.parquet"
    pq.write_table(pa.table({"caption": [f"{CAPTIONS[row % len(CAPTIONS)]} {row}" for row in range(7)]}), path)
    return path


@pytest.fixture(scope="module")
def drawing(config: PrecomputeConfig) -> PrecomputeConfig:
    return replace(config, synthetic=True, synthetic_steps=2)


@pytest.fixture
def store(drawing: PrecomputeConfig, captions: Path, tmp_path: Path) -> Path:
    return precompute(replace(drawing, out=tmp_path / "given.zarr"), [str(captions)])


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return load_teacher(str(teacher_folder), device="cpu")


def test_they_are_measured_once_and_kept_beside_the_store(
    store: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = StoreVariances(Store(store), teacher, batch_size=3).at(teacher, TIMES)
    path = store.with_name("given.analytic-dpm.json")
    kept = json.loads(path.read_text())
    assert [kept["times"][f"{t:g}"]["error"] for t in TIMES] == list(found.errors) and min(found.errors) > 0
    assert 0.0 < found.variance < found.half_range**2

    def measured(*arguments: Any) -> dict[str, Any]:
        asked.append(list(arguments[3]))
        return measure(*arguments)

    measure, asked = variances.measure_variances, list[list[float]]()
    monkeypatch.setattr(variances, "measure_variances", measured)
    again = StoreVariances(Store(store), teacher, batch_size=3)
    assert again.at(teacher, TIMES[::-1]).errors == found.errors[::-1] and not asked
    path.unlink()
    assert again.at(teacher, TIMES[1:2]).errors == found.errors[1:2]  # whichever others are measured beside it
    assert again.at(teacher, TIMES).errors == found.errors and asked == [[0.5], [0.9, 0.1]]
    for broken in ("{", "[]", '{"times": 3}', json.dumps({**kept, "times": {"0.9": {"error": "x"}}})):
        path.write_text(broken)
        assert again.at(teacher, TIMES[:1]).errors == found.errors[:1]
    assert asked[2:] == [[0.9]] * 4
    fewer = StoreVariances(Store(store), teacher, num_rows=3, batch_size=3)
    assert fewer.at(teacher, TIMES[:1]).errors != found.errors[:1] and fewer.fingerprint() != again.fingerprint()


def test_a_store_of_another_teacher_is_refused(store: Path) -> None:
    with pytest.raises(UsageError, match="does not fit sana-tiny"):
        StoreVariances(Store(store), load_teacher("sana-tiny"))


def test_a_synthetic_store_says_which_it_was_drawn_by(
    store: Path, drawing: PrecomputeConfig, captions: Path, teacher: Teacher, tmp_path: Path
) -> None:
    out = tmp_path / "drawn.zarr"
    by_it = replace(drawing, out=out, synthetic_sampler="analytic-dpm", synthetic_data=store)
    precompute(by_it, [str(captions)])
    known = StoreVariances(Store(store), teacher)
    opened = Store(out)
    said = opened.attributes["settings"]["synthetic"]
    assert said["sampler"] == "analytic-dpm" and said["variances"] == known.fingerprint()
    batch = next(Loader(out, 1, seed=0))
    expected = teacher.sample(
        batch.condition.to(dtype=torch.float32),
        teacher.null_condition(),
        num_steps=2,
        generators=[torch_generator(opened, int(batch.rows[0]))],
        sampler=TeacherSampler(name="analytic-dpm", variances=known),
    )
    torch.testing.assert_close(teacher.scale(batch.latents.float()), expected, rtol=2e-3, atol=2e-3)
    assert precompute(by_it, [str(captions)]) == out  # nothing is left to do


def torch_generator(store: Store, row: int) -> torch.Generator:
    from ddx.data.synthetic import synthetic_of

    how = synthetic_of(store.segments[0].settings)
    assert how is not None and not how.makes_pairs
    return how.generator(row)


def test_ddx_sample_draws_by_it(
    store: Path, teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sample", "--teacher", str(teacher.folder), "--prompt", "a red circle", "--steps", "2", "--seed", "4"]
    line += ["--workspace", str(tmp_path), "--device", "cpu"]
    assert main.run([*line, "--sampler", "analytic-dpm"]) == 2
    error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "no finished store" in error and "--data" in hint
    assert main.run([*line, "--sampler", "heun", "--data", str(store)]) == 2
    assert "leave --data away" in capsys.readouterr().err
    assert main.run([*line, "--sampler", "analytic-dpm", "--data", str(store), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["sampler"] == "analytic-dpm"
    (condition,) = teacher.encode_text(["a red circle"])
    sampler = TeacherSampler(name="analytic-dpm", variances=StoreVariances(Store(store), teacher))
    (drawn,) = draw_with_teacher(teacher, [condition], teacher.null_condition(), [4], steps=2, sampler=sampler)
    picture = np.asarray(Image.open(answer["images"][0]["path"])).astype(int)
    assert abs(picture - drawn.astype(int)).max() <= 2
