"""Wrong input, as a new user makes it: one clear line, the cure, the exit code, nothing lost."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddx.cli import main
from pipelines import make_sana
from watchdog import WATCHDOG_S

Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("teacher") / "sana")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures in a parquet file."""
    path, random = tmp_path_factory.mktemp("pairs") / "pairs.parquet", np.random.default_rng(0)
    images = []
    for _ in range(4):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (72, 72, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    pq.write_table(pa.table({"image": images, "caption": ["a cat", "a dog", "a house", "a light"]}), path)
    return path


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command that must fail with `code`; return its error and its hint."""

    def run(*arguments: object, code: int) -> tuple[str, str]:
        line = [str(argument) for argument in arguments]
        assert main.run([*line, "--workspace", str(tmp_path / "runs")]) == code
        captured = capsys.readouterr()
        *_, error, hint = captured.err.strip().splitlines()
        assert error.startswith("error: "), captured.err
        assert hint.startswith("hint: "), captured.err
        assert len(error) < 400
        return error, hint

    return run


def table(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_missing_file(fails: Run, teacher: Path) -> None:
    error, _ = fails("precompute", "nowhere.parquet", "--teacher", teacher, code=2)
    assert "nowhere.parquet" in error


def test_no_source(fails: Run) -> None:
    _, hint = fails("precompute", code=2)
    assert "ddx precompute" in hint


def test_no_caption_column(fails: Run, teacher: Path, tmp_path: Path) -> None:
    source = table(tmp_path / "x.parquet", URL=["http://h/a.jpg"], words=["a cat"])
    error, hint = fails("precompute", source, "--teacher", teacher, code=2)
    assert "caption" in error
    assert "words" in error + hint
    assert "--caption-column" in hint


def test_no_image_column(fails: Run, teacher: Path, tmp_path: Path) -> None:
    source = table(tmp_path / "x.parquet", where=["http://h/a.jpg"], TEXT=["a cat"])
    error, hint = fails("precompute", source, "--teacher", teacher, code=2)
    assert "where" in error + hint
    assert "--url-column" in hint


def test_empty_parquet(fails: Run, teacher: Path, tmp_path: Path) -> None:
    schema = pa.schema([("URL", pa.string()), ("TEXT", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    error, _ = fails("precompute", tmp_path / "empty.parquet", "--teacher", teacher, code=2)
    assert "empty.parquet" in error


def test_not_a_parquet_file(fails: Run, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("hello")
    error, _ = fails("precompute", tmp_path / "x.parquet", "--teacher", teacher, code=2)
    assert "x.parquet" in error


def test_unknown_teacher(fails: Run, pairs: Path) -> None:
    error, hint = fails("precompute", pairs, "--teacher", "sana-600", code=2)
    assert "sana-600" in error
    assert "sana-600m" in error.replace("'sana-600'", "") + hint


def test_unknown_method(fails: Run, teacher: Path) -> None:
    error, hint = fails("distill", "--method", "lmc", "--teacher", teacher, code=2)
    assert "lmc" in error
    assert "lcm" in hint


def test_unknown_set_key(fails: Run, teacher: Path, pairs: Path) -> None:
    error, hint = fails("precompute", pairs, "--teacher", teacher, "--set", "bach_size=4", code=2)
    assert "bach_size" in error
    assert "batch_size" in hint


def test_distill_without_a_store(fails: Run, teacher: Path) -> None:
    _, hint = fails("distill", "--teacher", teacher, code=2)
    assert "ddx precompute" in hint


def test_distill_from_what_is_not_precomputed(fails: Run, teacher: Path, pairs: Path) -> None:
    for source in (pairs, pairs.parent, "pairs-*.parquet"):
        error, hint = fails("distill", "--teacher", teacher, "--data", source, code=2)
        assert str(source) in error and f"precompute {source} --teacher" in hint.replace("them", "it")


def test_sample_without_a_student(fails: Run) -> None:
    _, hint = fails("sample", code=1)
    assert "ddx distill" in hint


def test_store_of_another_teacher(fails: Run, teacher: Path, pairs: Path, tmp_path: Path) -> None:
    other = make_sana(tmp_path / "other", seed=1)
    store = tmp_path / "store.zarr"
    assert main.run(["precompute", str(pairs), "--teacher", str(teacher), "--out", str(store), "--quiet"]) == 0
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    error, _ = fails("distill", "--teacher", other, "--data", store, code=2)
    assert "store.zarr" in error
    error, _ = fails("precompute", pairs, "--teacher", other, "--out", store, code=2)
    assert "store.zarr" in error
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_no_space_left(teacher: Path, pairs: Path, tmp_path: Path) -> None:
    """On a disk of 64 KB: the store cannot be written, and the same command on a larger one finishes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small disk")
    ddx = f"{sys.executable} -m ddx.cli.main precompute {pairs} --teacher {teacher} --out {disk}/store.zarr"
    script = (
        f"mount -t tmpfs -o size=64k,mode=777 none {disk} || exit 77\nhead -c 50000 /dev/zero > {disk}/filler\n{ddx}"
    )
    line = ["unshare", "--mount", "--map-root-user", "bash", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, timeout=WATCHDOG_S)
    if done.returncode == 77 or "unshare" in done.stderr.split(":")[0]:
        pytest.skip("may not mount a small disk here")
    *_, error, hint = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert error.startswith("error: ") and "space" in error, done.stderr
    assert hint.startswith("hint: "), done.stderr
    assert "Traceback" not in done.stderr
