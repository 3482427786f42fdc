"""Sources in an object store, read over HTTP from a server that checks signatures, end as local files do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import UsageError
from object_server import BUCKET, ObjectServer, serve_objects
from source_files import CAPTIONS, NUM, csv_of_paths, embedded_parquet, image_folder, png, tars
from stores import shard_bytes
from watchdog import wait_until

Ddx = Callable[..., Any]
ARRAYS = ("latents", "text/tokens", "text/offset", "text/length")


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with serve_objects() as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def make(teacher_folder: Path) -> Callable[..., Store]:
    def make(source: object, out: Path, **settings: object) -> Store:
        config = PrecomputeConfig(
            teacher=str(teacher_folder), device="cpu", batch_size=2, part_rows=4, out=out, max_upscale=2.0, **settings
        )
        return Store(precompute(config, [str(source)]))

    return make


@pytest.fixture(scope="module")
def reference(make: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("reference")
    return make(image_folder(folder), folder / "store.zarr")


def folder_of_images(server: ObjectServer, folder: Path) -> str:
    server.upload(image_folder(folder), "images")
    return "images/"


def list_beside_images(server: ObjectServer, folder: Path) -> str:
    """Paths that are meant from the list's own place."""
    server.upload(csv_of_paths(folder).parent, "list")
    return "list/list.csv"


def tsv_of_addresses(server: ObjectServer, folder: Path) -> str:
    """As Conceptual Captions: no header, and addresses of objects where others have those of web servers."""
    server.upload(image_folder(folder), "addressed")
    lines = [
        f"{caption.replace(chr(9), ' ')}\ts3://{BUCKET}/addressed/deep/{number:03d}.png"
        for number, caption in enumerate(CAPTIONS)
    ]
    (folder / "list.tsv").write_text("\n".join(lines))
    server.upload(folder / "list.tsv", "addresses")
    return "addresses/*.tsv"


def shards(server: ObjectServer, folder: Path) -> str:
    for file in sorted(tars(folder).parent.glob("*.tar")):
        server.upload(file, "shards")
    return "shards/{00000..00001}.tar"


def parquet_with_images(server: ObjectServer, folder: Path) -> str:
    server.upload(embedded_parquet(folder), "tables")
    return "tables/part-*.parquet"


@pytest.mark.parametrize("write", [folder_of_images, list_beside_images, shards, parquet_with_images])
def test_every_kind_of_source_gives_the_arrays_of_local_files(
    write: Callable[[ObjectServer, Path], str],
    server: ObjectServer,
    make: Callable[..., Store],
    reference: Store,
    tmp_path: Path,
) -> None:
    source = f"s3://{BUCKET}/{write(server, tmp_path)}"
    store = make(source, tmp_path / "store.zarr")
    assert store.rows_table()["status"].to_pylist() == ["ok"] * NUM
    assert store.rows_table()["caption"].to_pylist() == CAPTIONS
    assert store.attributes["sources"] == [source]
    for name in ARRAYS:
        np.testing.assert_array_equal(store.array(name), reference.array(name), name)


def test_a_row_whose_object_is_missing_is_recorded(
    server: ObjectServer, make: Callable[..., Store], reference: Store, tmp_path: Path
) -> None:
    source = f"s3://{BUCKET}/{tsv_of_addresses(server, tmp_path)}"
    server.client().delete_object(Bucket=BUCKET, Key="addressed/deep/003.png")
    store = make(source, tmp_path / "store.zarr")
    assert store.rows_table()["status"].to_pylist() == ["ok", "ok", "ok", "missing_file", "ok", "ok"]
    assert "addressed/deep/003.png: no such object" in store.rows_table()["detail"].to_pylist()[3]
    np.testing.assert_array_equal(store.array("latents")[4:], reference.array("latents")[4:])
    # The object comes, and the row is taken up.
    server.client().put_object(Bucket=BUCKET, Key="addressed/deep/003.png", Body=png(3))
    store = make(source, tmp_path / "store.zarr", retry=("missing_file",))
    np.testing.assert_array_equal(store.array("latents"), reference.array("latents"))


def test_a_source_that_changed_is_another_one(server: ObjectServer, make: Callable[..., Store], tmp_path: Path) -> None:
    server.upload(image_folder(tmp_path), "changing")
    source = f"s3://{BUCKET}/changing/"
    before = shard_bytes(make(source, tmp_path / "store.zarr").path)
    assert shard_bytes(make(source, tmp_path / "store.zarr").path) == before
    server.client().put_object(Bucket=BUCKET, Key="changing/deep/000.txt", Body=b"another caption, as long as that")
    with pytest.raises(UsageError, match="has changed since"):
        make(source, tmp_path / "store.zarr")


def test_the_command_goes_on_after_a_kill(server: ObjectServer, ddx: Ddx, tmp_path: Path) -> None:
    source = f"s3://{BUCKET}/{shards(server, tmp_path)}"
    line = ["precompute", source, "--teacher", "sana-tiny", "--device", "cpu", "--part-rows", "1", "--max-upscale", "8"]
    assert main.run([*line, "--out", str(tmp_path / "whole.zarr")]) == 0
    process = ddx(*line, "--out", tmp_path / "killed.zarr")
    wait_until(lambda: list((tmp_path / "killed.zarr").glob("_ddx/commit/*")), process)
    process.kill()
    process.communicate()
    assert main.run([*line, "--out", str(tmp_path / "killed.zarr")]) == 0
    assert shard_bytes(tmp_path / "killed.zarr") == shard_bytes(tmp_path / "whole.zarr")


# A bucket is opened once in a process, with the settings of that moment: every case has its own.
@pytest.mark.parametrize(
    ("source", "environment", "said", "cure"),
    [
        (
            "nobody/images/",
            {"AWS_ACCESS_KEY_ID": "AKIANOBODY"},
            "access is denied: InvalidAcc",
            "AWS_SECRET_ACCESS_KEY",
        ),
        ("unsigned/a.csv", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "access is denied", "AWS_ACCESS_KEY_ID"),
        ("no-such-bucket/images/", {}, "no such bucket", "AWS_ENDPOINT_URL"),
        ("no-such-bucket/*.tar", {}, "no such bucket", "AWS_ENDPOINT_URL"),
        (f"{BUCKET}/none.parquet", {}, f"no such file: s3://{BUCKET}/none.parquet", "check the path"),
        ("plain/images/", {"AWS_ALLOW_HTTP": "false"}, "scheme", "AWS_ALLOW_HTTP=true"),
        ("nowhere/images/", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "refused", "AWS_ENDPOINT_URL"),
    ],
)
def test_what_the_store_refuses_is_one_line_and_its_cure(
    source: str,
    environment: dict[str, str],
    said: str,
    cure: str,
    server: ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main.run(["precompute", f"s3://{source}", "--teacher", "sana-tiny", "--device", "cpu", "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert said in printed and cure in printed.partition("hint:")[2], printed
