"""`ddx inspect` of stores: what failed, on which hosts, and the report."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddx.cli import main
from ddx.data.config import PrecomputeConfig
from ddx.data.inspection.bar_charts import BAR, column_chart, row_chart
from ddx.data.inspection.ledger import cure, read_ledger
from ddx.data.inspection.statistics import bars, count_pictures, latent_moments, nice_step, quantile
from ddx.data.precompute import precompute
from ddx.data.store import Store
from ddx.errors import DdxError
from ddx.progress import NullProgress
from picture_server import PictureServer, serve_pictures, write_urls
from stores import finish
from watchdog import PATIENT, PATIENT_FLAGS, wait_until

NUM_ROWS, PART_ROWS = 16, 4
FAILS = {1: 404, 2: 503, 5: 404, 7: 404, 8: 500, 9: 404}  # odd rows are asked of localhost
HELD = 10


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with serve_pictures(FAILS) as state:
        yield state


@pytest.fixture(scope="module")
def source(server: PictureServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    urls = [server.url(row, "localhost" if row % 2 else "127.0.0.1") for row in range(NUM_ROWS)]
    return write_urls(tmp_path_factory.mktemp("urls") / "urls.parquet", urls)


@pytest.fixture(scope="module")
def store(source: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PrecomputeConfig(
        teacher=str(teacher_folder),
        out=tmp_path_factory.mktemp("store") / "urls.zarr",
        allow_private_hosts=True,
        device="cpu",
        part_rows=PART_ROWS,
        batch_size=3,
        retries=0,
        **PATIENT,
    )
    return precompute(config, [str(source)])


def inspect(*words: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON that `ddx inspect` prints."""
    assert main.run(["inspect", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_examples_and_hosts(store: Path, server: PictureServer, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(store, capsys=capsys)
    assert found["failed"] == {"http_404": 4, "http_500": 1, "http_503": 1}
    assert {status: [row["row"] for row in rows] for status, rows in found["examples"].items()} == {
        "http_404": [1, 5, 7],  # three of the four
        "http_500": [8],
        "http_503": [2],
    }
    assert found["examples"]["http_503"][0]["source"] == server.url(2)
    assert "503" in found["examples"]["http_503"][0]["detail"]
    assert found["hosts"] == {
        "worst": [
            {"host": "localhost", "rows": 8, "ok": 4, "failed": 4, "most": "http_404"},
            {"host": "127.0.0.1", "rows": 8, "ok": 6, "failed": 2, "most": "http_500"},
        ],
        "others": None,
        "exact": True,
    }


def test_the_tables_are_aligned_and_the_cure_is_named(
    store: Path, server: PictureServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["inspect", str(store)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "http_404     4   25.00%" in out
    assert "localhost     8   4       4  http_404" in out
    cure = out.index("2 of them may pass at another time: ddx precompute … --retry 'http_5*'")
    assert cure < next(place for place, line in enumerate(out) if line.startswith("teacher: "))
    example = out[out.index("http_503") + 1 :][:3]
    assert example[0].startswith("  row 2  000000002  '")
    assert "503" in example[1] and example[2].strip() == server.url(2)


def test_a_store_that_was_killed_shows_the_parts_that_are_done(
    server: PictureServer,
    source: Path,
    teacher_folder: Path,
    tmp_path: Path,
    ddx: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "killed.zarr"
    server.held_from = HELD
    options = ("--allow-private-hosts", "--device", "cpu", "--part-rows", PART_ROWS, "--batch-size", 3, "--retries", 0)
    process = ddx("precompute", source, "--teacher", teacher_folder, "--out", store, *options, *PATIENT_FLAGS)
    wait_until((store / "_ddx" / "commit" / "1").exists, process)
    process.kill()
    finish(process, -signal.SIGKILL)
    server.released.set()
    found = inspect(store, "--report", "--out", tmp_path / "page", capsys=capsys)
    assert (found["complete"], found["parts"]) == (False, {"done": 2, "total": 4})
    assert {status: len(rows) for status, rows in found["examples"].items()} == {"http_404": 3, "http_503": 1}
    assert sum(host["rows"] for host in found["hosts"]["worst"]) == found["ok"] + sum(found["failed"].values()) == 8
    page = Page(tmp_path / "page" / "index.html")
    assert "2 of 4 parts are done" in page.text
    assert "width.png" in page.sources


class Page(HTMLParser):
    """The text of a page and the pictures that it shows; every tag must be closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.sources: list[str] = []
        self.text, self.open = "", list[str]()
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "a"), "addresses of other people are not to be followed by accident"
        self.sources += [str(value) for key, value in attrs if key == "src"]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_lies_in_the_workspace_and_its_plots_show_something(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspect(store, "--report", "--workspace", tmp_path, capsys=capsys)
    folder = tmp_path / "reports" / "urls"
    assert found["report"] == str(folder / "index.html")
    page = Page(folder / "index.html")
    names = ("failures", "width", "height", "aspect", "tokens", "latent-mean", "latent-std")
    assert page.sources == [f"{name}.png" for name in names]
    assert {path.name for path in folder.iterdir()} == {"index.html", *page.sources}
    for name in page.sources:
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
            assert np.count_nonzero(bar_pixels(image)) > 1000, name
            assert np.asarray(image)[..., 3].min() == 0, "a dark page shows through"
    assert "10 of 16 rows are fine, 6 failed" in page.text
    assert "median 90 px, nine of ten from 90 to 90 px" in page.text
    assert "localhost" in page.text


def test_a_page_without_a_fine_row_has_no_histograms(
    teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"image": [b"<script>alert(1)</script>"], "caption": ["a <b>cat"]}), source)
    config = PrecomputeConfig(teacher=str(teacher_folder), out=tmp_path / "bad.zarr", device="cpu")
    with pytest.raises(DdxError, match="1 not_an_image"):
        precompute(config, [str(source)])
    found = inspect(tmp_path / "bad.zarr", "--report", "--workspace", tmp_path, capsys=capsys)
    page = Page(Path(found["report"]))
    assert page.sources == ["failures.png"]
    assert "<script>" in page.text, "what a file holds is shown as text"
    assert found["hosts"] == {"worst": [], "others": None, "exact": True}


def test_a_report_is_made_of_a_store(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["inspect", "sana-tiny", "--report"]) == 2
    assert "sana-tiny is not a store" in capsys.readouterr().err
    assert main.run(["inspect", str(store), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("hint: add --report\n")
    (tmp_path / "file").write_text("")
    assert main.run(["inspect", str(store), "--report", "--out", str(tmp_path / "file")]) == 1
    assert "cannot write" in capsys.readouterr().err


def ledger_table(rows: list[tuple[str, str]]) -> pa.Table:
    source, status = zip(*rows, strict=True)
    blank = dict.fromkeys(("key", "caption", "detail"), [""] * len(rows))
    return pa.table({"row": range(len(rows)), "source": source, "status": status, **blank})


@pytest.mark.parametrize(
    ("source", "host"),
    [
        ("https://example.org/a.jpg", "example.org"),
        ("HTTP://User:p@ss@Example.ORG:8080/a?u=http://other.org", "example.org"),
        ("https://[::1]:8080/a", "[::1]"),
        ("http://example.org?a@b", "example.org"),
        ("http://example.org\\@other.org/", "example.org"),
        ("/data/http://example.org/a.jpg", None),
        ("", None),
    ],
)
def test_the_host_of_a_source(source: str, host: str | None) -> None:
    worst = read_ledger([ledger_table([(source, "ok")])])["hosts"]["worst"]
    assert [entry["host"] for entry in worst] == ([] if host is None else [host])


def test_more_hosts_than_are_counted_at_once_lose_no_row() -> None:
    rows = [(f"http://h{number}.org/", "dns" if number % 3 else "ok") for number in range(500)]
    bad = [("http://bad.org/", "timeout"), ("http://bad.org/", "timeout"), ("http://bad.org/", "dns")]
    tables = [ledger_table([*rows[start : start + 50], *bad]) for start in range(0, 500, 50)]
    exact, bounded = read_ledger(tables), read_ledger(tables, max_hosts=60)
    assert (exact["hosts"]["exact"], bounded["hosts"]["exact"]) == (True, False)
    assert [len(found) for found in bounded["examples"].values()] == [3, 3], "over all tables together"
    worst = {"host": "bad.org", "rows": 30, "ok": 0, "failed": 30, "most": "timeout"}
    for hosts in (exact["hosts"], bounded["hosts"]):
        assert hosts["worst"][0] == worst
        assert len(hosts["worst"]) == 20
        assert sum(host["rows"] for host in [*hosts["worst"], hosts["others"]]) == 530
        assert sum(host["failed"] for host in [*hosts["worst"], hosts["others"]]) == 333 + 30
    assert exact["hosts"]["others"]["hosts"] == 501 - 20
    assert bounded["hosts"]["others"]["hosts"] is None


def test_only_what_may_pass_is_advised_to_be_taken_up_again() -> None:
    advice = cure({"decode": 7, "http_404": 5, "http_429": 1, "http_503": 2, "timeout": 4})
    assert advice.startswith("7 of them")
    assert advice.endswith("--retry timeout --retry http_429 --retry 'http_5*'")
    assert cure({"decode": 7, "http_404": 5}) == ""


def test_tokens_are_counted_where_parts_are_done(store: Path, tmp_path: Path) -> None:
    lengths = Store(store).array("text/length")
    assert Store(store).token_counts().tolist()[1:] == np.bincount(lengths, minlength=301)[1:].tolist()
    summary = Store(store).summary()
    assert summary["mean_tokens"] == round(float(lengths[lengths > 0].mean()), 2)
    assert summary["token_overhead"] == round(float((-(-lengths // 4) * 4).sum() / lengths.sum()), 4)
    torn = tmp_path / "torn.zarr"
    shutil.copytree(store, torn)
    (torn / "_ddx" / "commit" / "1").unlink()  # its shards are there, as when a process dies before the record
    lengths[PART_ROWS : 2 * PART_ROWS] = 0
    assert Store(torn).token_counts().tolist()[1:] == np.bincount(lengths, minlength=301)[1:].tolist()


def test_pictures_are_counted_and_sampled(store: Path) -> None:
    tables = list(Store(store).row_tables(("row", "status", "width", "height"), NullProgress()))
    counts = count_pictures(tables)
    fine = [row for row in range(NUM_ROWS) if row not in FAILS]
    assert counts.sampled.tolist() == fine
    assert np.flatnonzero(counts.width).tolist() == [80 + row for row in fine]
    assert counts.height[90] == counts.aspect.sum() == len(fine)
    middle = len(counts.aspect) // 2
    assert counts.aspect[middle] == 4, "87 to 93 by 90 pixels: rows 10 to 13"
    moments = latent_moments(Store(store), fine)
    latents = Store(store).array("latents")[fine].astype(np.float64)
    assert np.allclose(moments.mean, latents.mean((0, 2, 3)), atol=1e-12)
    assert np.allclose(moments.std, latents.std((0, 2, 3)), atol=1e-12)


def test_every_fine_row_is_as_likely_in_the_sample() -> None:
    rows = np.arange(4000)
    status = np.where(rows % 2, "ok", "dns")
    table = pa.table({"row": rows, "status": status, "width": rows + 1, "height": rows + 1})
    sampled = count_pictures([table.slice(start, 500) for start in range(0, 4000, 500)], 400).sampled
    assert len(set(sampled.tolist())) == 400
    assert (sampled % 2 == 1).all()
    # 400 of 2000 rows in eight equal tables: 50 of each, with a standard deviation of 6.
    assert all(25 < count < 75 for count in np.histogram(sampled, 8, (0, 4000))[0])


@pytest.mark.parametrize(
    ("values", "first", "step", "open_end"),
    [
        ([7], 7, 1, False),
        ([10, 11, 49], 10, 1, False),
        ([*range(300, 700)], 300, 10, False),
        ([*range(300, 700), 9000], 300, 10, True),
    ],
)
def test_bars_hold_every_value(values: list[int], first: int, step: int, open_end: bool) -> None:
    found = bars(np.bincount(values, minlength=10_000))
    assert (found.first, found.step, found.open_end) == (first, step, open_end)
    assert sum(found.counts) == len(values)
    assert len(found.counts) <= 41
    assert found.counts[0]


def test_quantiles_and_steps() -> None:
    counts = np.bincount([3, 5, 5, 9])
    assert [quantile(counts, share) for share in (0.05, 0.25, 0.5, 0.75, 0.76, 1.0)] == [3, 3, 5, 5, 9, 9]
    assert [nice_step(span, 4) for span in (4, 5, 20, 21, 0.7)] == pytest.approx([1, 2, 5, 10, 0.2])


def bar_pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    """Which pixels of a plot belong to bars: bool `[H, W]`."""
    return (np.asarray(image.convert("RGBA")) == BAR).all(-1)


def test_bars_are_as_high_as_their_values() -> None:
    heights = bar_pixels(column_chart([2, 4, 0, -2], [(0.5, "a")])).sum(0)
    runs = [int(run.max()) for run in np.split(heights, np.flatnonzero(np.diff(heights)) + 1) if run.max()]
    assert len(runs) == 3
    assert runs[1] / runs[0] == pytest.approx(2, rel=0.05)
    assert runs[2] / runs[0] == pytest.approx(1, rel=0.05)
    widths = bar_pixels(row_chart([("http_404", 30), ("dns", 10)])).sum(1)
    assert widths.max() / widths[widths > 0].min() == pytest.approx(3, rel=0.05)
    assert bar_pixels(column_chart([1_000_000, 1], [])).sum(0)[-20] >= 2, "one row in a million shows"
