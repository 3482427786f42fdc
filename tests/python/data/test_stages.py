"""Fetching apart from encoding ends in the same store, and wants no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import DdxError, UsageError
from stores import shard_bytes
from watchdog import wait_until


@pytest.fixture
def config(teacher_folder: Path) -> PrecomputeConfig:
    return PrecomputeConfig(teacher=str(teacher_folder), device="cpu", part_rows=4, batch_size=3)


def test_fetched_then_encoded_is_the_store_of_one_run(config: PrecomputeConfig, pairs: Path, tmp_path: Path) -> None:
    whole = precompute(replace(config, out=tmp_path / "whole.zarr"), [str(pairs)])
    apart = replace(config, out=tmp_path / "apart.zarr")
    store = precompute(replace(apart, stage="fetch"), [str(pairs)])
    fetched = store / "_ddx" / "fetched"
    assert not (store / "zarr.json").exists()
    assert len(list(fetched.iterdir())) == 2 * 4
    times = {path: path.stat().st_mtime_ns for path in fetched.iterdir()}
    precompute(replace(apart, stage="fetch"), [str(pairs)])
    assert times == {path: path.stat().st_mtime_ns for path in fetched.iterdir()}, "what is there is not fetched again"
    precompute(replace(apart, stage="encode"), [str(pairs)])
    assert shard_bytes(store) == shard_bytes(whole)
    assert not fetched.exists()


def test_the_weights_are_not_needed_to_fetch(
    config: PrecomputeConfig, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a network is loaded")

    monkeypatch.setattr("ddx.teachers.open_pipeline.load_model", refuse)
    precompute(replace(config, out=tmp_path / "s.zarr", stage="fetch"), [str(pairs)])
    with pytest.raises(AssertionError, match="a network is loaded"):
        precompute(replace(config, out=tmp_path / "s.zarr", stage="encode"), [str(pairs)])


def test_a_part_that_is_missing_is_named_and_the_rest_is_kept(
    config: PrecomputeConfig, pairs: Path, tmp_path: Path
) -> None:
    apart = replace(config, out=tmp_path / "s.zarr")
    store = precompute(replace(apart, stage="fetch"), [str(pairs)])
    (store / "_ddx" / "fetched" / "2.rows.parquet").unlink()
    with pytest.raises(DdxError, match=r"part 2 of .* is not fetched") as caught:
        precompute(replace(apart, stage="encode"), [str(pairs)])
    assert "--stage fetch" in str(caught.value.hint)
    assert [record["part"] for record in Store(store).commits()] == [0, 1]
    precompute(replace(apart, stage="fetch"), [str(pairs)])
    precompute(replace(apart, stage="encode"), [str(pairs)])
    assert Store(store).is_complete


def test_a_machine_that_computes_in_another_type_takes_the_pictures(
    config: PrecomputeConfig, pairs: Path, tmp_path: Path
) -> None:
    apart = replace(config, out=tmp_path / "s.zarr", dtype="float32", flip=False)
    precompute(replace(apart, stage="fetch"), [str(pairs)])
    store = Store(precompute(replace(apart, stage="encode", dtype="bf16", flip=True), [str(pairs)]))
    assert store.attributes["settings"]["dtype"] == "bfloat16"
    assert store.array("latents_flip").any()


def test_pictures_of_other_settings_are_refused(config: PrecomputeConfig, pairs: Path, tmp_path: Path) -> None:
    apart = replace(config, out=tmp_path / "s.zarr")
    precompute(replace(apart, stage="fetch"), [str(pairs)])
    with pytest.raises(UsageError, match="other settings"):
        precompute(replace(apart, stage="encode", max_upscale=2.0), [str(pairs)])


def test_a_fetch_that_is_killed_goes_on(
    ddx: Callable[..., Any], config: PrecomputeConfig, pairs: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    options = ("--teacher", config.teacher, "--device", "cpu", "--part-rows", 4, "--batch-size", 3, "--out", store)
    process = ddx("precompute", pairs, *options, "--stage", "fetch")
    wait_until(lambda: list(store.glob("_ddx/fetched/*.rows.parquet")), process)
    process.kill()
    process.communicate()
    for stage in ("fetch", "encode"):
        assert main.run([str(word) for word in ("precompute", pairs, *options, "--stage", stage)]) == 0
    whole = precompute(replace(config, out=tmp_path / "whole.zarr"), [str(pairs)])
    assert shard_bytes(store) == shard_bytes(whole)
    assert not list(store.rglob("*.tmp"))


def test_what_does_not_go_together_is_said(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["precompute", str(pairs), "--stage", "fetch", "--retry", "timeout"]) == 2
    assert "--stage" in capsys.readouterr().err
    assert main.run(["precompute", str(pairs), "--stage", "fetching"]) == 2
    assert "`fetch`" in capsys.readouterr().err
