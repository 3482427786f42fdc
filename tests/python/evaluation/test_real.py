"""`ddx evaluate --reference`: scikit-image's photographs as real pictures, and networks of random weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image, ImageFilter

from ddx.cli.main import run
from ddx.errors import DdxError, UsageError
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.extraction import extract
from ddx.evaluation.measure_config import MeasureConfig
from ddx.evaluation.picture_files import of_folder, open_pictures, read_picture, square
from ddx.evaluation.prompt_lists import read_prompt_list
from ddx.evaluation.protocols import PROTOCOLS, differences
from ddx.evaluation.reference import load_statistics, save_statistics
from ddx.metrics.frechet import distance_to_rows, fit
from ddx.networks.lpips import BACKBONE
from picture_weights import make_clip, make_dino, make_inception

pytest.importorskip("torch_fidelity", reason="pip install 'ddx[eval]'")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weights")
    return {
        "inception": make_inception(root / "inception.pth"),
        "dinov2": make_dino(root / "dino"),
        "clip": make_clip(root / "clip"),
    }


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one crops of photographs, and three files that are no pictures."""
    folder = tmp_path_factory.mktemp("real")
    for i, picture in enumerate(crops()):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG no picture")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "notes.txt").write_text("no picture")
    return folder


def crops() -> list[np.ndarray[Any, Any]]:
    found = []
    for picture in (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()):
        for i in range(7):
            top, left = 20 * i, 25 * i
            found.append(np.ascontiguousarray(picture[top : top + 96, left : left + 112]))
    return found


def blurred(source: Path, folder: Path, radius: float) -> Path:
    folder.mkdir()
    for path in sorted(source.glob("[0-9]*.png")):
        Image.open(path).filter(ImageFilter.GaussianBlur(radius)).save(folder / path.name)
    return folder


def flags(weights: dict[str, Path], tmp_path: Path) -> list[str]:
    networks = [text for name, path in weights.items() for text in (f"--{name}", str(path))]
    networks += ["--clip-large", str(weights["clip"]), "--pickscore", str(weights["clip"])]
    return [*networks, "--resamples", "4", "--device", "cpu", "--workspace", str(tmp_path / "runs"), "--json"]


def test_a_folder_is_scored_by_every_metric(
    weights: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(["a red circle", "a cat and a dog", "two small green squares", "the blue house"] * 6))
    drawn = blurred(photographs, tmp_path / "blurred", 1.5)
    (drawn / "08.png").write_bytes(b"broken")
    names = "fid,kid,is,precision,recall,density,coverage,cmmd,fd-dinov2,clipscore,pickscore"
    command = ["evaluate", "--pictures", str(drawn), "--reference", str(photographs), "--prompts", str(captions)]
    saved = tmp_path / "real.npz"
    code = run([*command, "--metrics", names, "--save-statistics", str(saved), *flags(weights, tmp_path)])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    (row,) = answer["rows"]
    assert row["pictures"] == 20 and row["skipped"] == {"unreadable": 1}
    assert answer["protocol"]["reference_pictures"] == 21
    assert answer["protocol"]["reference_skipped"] == {"unreadable": 2}
    assert row["fid"] > 0 and row["fd_dinov2"] > 0 and row["cmmd"] > 0 and row["is"] >= 1
    assert 0 <= row["clipscore"] <= 100 and row["bands"]["fid"]["low"] < row["fid"] < row["bands"]["fid"]["high"]
    assert row["fid_infinity"] is not None and any("FID of 20 pictures" in note for note in answer["notes"])
    assert any("1 unreadable" in note for note in answer["notes"])
    networks = answer["protocol"]["networks"]
    assert (
        networks["inception"]["weights"].startswith("sha256:") and "clean-fid" in networks["inception"]["preprocessing"]
    )
    page = Path(answer["page"]).read_text(encoding="utf-8")
    assert "FID∞" in page and page.count("<img") == 12
    (line,) = csv.DictReader(Path(answer["table"]).read_text().splitlines())
    assert float(line["fid"]) == pytest.approx(row["fid"])

    # what was saved stands in for the pictures
    command = ["evaluate", "--pictures", str(drawn), "--reference", str(saved), "--prompts", str(captions)]
    assert run([*command, "--metrics", names, *flags(weights, tmp_path)]) == 0
    again = json.loads(capsys.readouterr().out)["rows"][0]
    for name in ("fid", "kid", "precision", "coverage", "cmmd", "fd_dinov2"):
        assert again[name] == pytest.approx(row[name], rel=1e-6), name


def test_saved_statistics_are_pytorch_fid_s(
    weights: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.random.RandomState(0).standard_normal((60, 2048))
    theirs = tmp_path / "theirs.npz"
    np.savez(theirs, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    reference = load_statistics(theirs)
    assert reference.count is None
    other = rows[:20] + 0.1
    assert distance_to_rows(reference.gaussian("inception.features"), other) == pytest.approx(
        distance_to_rows(fit(rows), other)
    )
    few = tmp_path / "few"
    few.mkdir()
    for i, picture in enumerate(crops()[:3]):
        Image.fromarray(picture).save(few / f"{i}.png")
    command = ["evaluate", "--pictures", str(few), "--reference", str(theirs), *flags(weights, tmp_path)]
    assert run([*command, "--metrics", "fid"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["fid"] > 0
    assert run([*command, "--metrics", "fid,kid"]) == 2  # said before anything is drawn or computed
    assert "has no features of inception, which KID needs" in capsys.readouterr().err
    ours = save_statistics(tmp_path / "ours.npz", reference, {})
    with np.load(ours) as file:
        assert file["mu"].dtype == np.float64 and file["sigma"].shape == (2048, 2048)
    for name, content in {"no.npz": b"hello", "other.npz": None}.items():
        if content is None:
            np.savez(tmp_path / name, a=np.zeros(3))
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DdxError, match=r"cannot read the statistics|holds no mu and sigma"):
            load_statistics(tmp_path / name)


def test_a_metric_of_too_few_pictures_is_left_out(
    weights: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    Image.fromarray(crops()[0]).save(few / "one.png")
    command = ["evaluate", "--pictures", str(few), "--reference", str(few), *flags(weights, tmp_path)]
    assert run([*command, "--metrics", "fd-dinov2,cmmd"]) == 0
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)["rows"]
    assert row["fd_dinov2"] is None and row["cmmd"] == pytest.approx(0.0, abs=1e-9)
    assert "FD-DINOv2 is left out" in shown.err


def test_a_source_of_precompute_is_a_reference(photographs: Path, tmp_path: Path) -> None:
    files = sorted(photographs.glob("[0-9]*.png"))[:6]
    table = {"image": [path.read_bytes() for path in files], "caption": ["a", "b", "", "d", "e", "f"]}
    table["image"][3] = b"no picture"
    pq.write_table(pa.table(table), tmp_path / "real.parquet")
    pictures = open_pictures(str(tmp_path / "real.parquet"), 64)
    found = [loader() for loader in pictures.loaders()]
    assert [picture.shape for picture in found] == [(64, 64, 3)] * 4
    assert pictures.skipped == {"no_caption": 1, "not_an_image": 1}
    near = square(read_picture(files[0]), 64).astype(float) - found[0]
    assert np.abs(near).mean() < 1.0  # both the middle square, by Lanczos
    with pytest.raises(DdxError):
        open_pictures(str(tmp_path / "none.parquet"), 64).loaders().__next__()


def test_features_of_files_are_kept(weights: dict[str, Path], photographs: Path, tmp_path: Path) -> None:
    import torch

    from ddx.networks.picture_networks import load_dino
    from ddx.progress import NullProgress

    networks: dict[str, Any] = {"dinov2": load_dino(str(weights["dinov2"]), torch.device("cpu"))}

    def features() -> Any:
        pictures = of_folder(photographs)
        return extract(
            networks, pictures, side=None, batch_size=5, progress=NullProgress(), cache=tmp_path / "features"
        )

    first = features()
    assert len(first) == 21 and first.skipped == {"unreadable": 2}
    networks["dinov2"].model = None  # nothing can be computed any more
    again = features()
    assert again.skipped == first.skipped
    np.testing.assert_array_equal(again.features["dinov2.features"], first.features["dinov2.features"])
    (kept,) = (tmp_path / "features").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:200])
    with pytest.raises(TypeError):  # a damaged file is computed again
        features()


def test_a_student_is_drawn_once_and_a_sweep_shares_its_pictures(
    student: Path, weights: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--student", str(student), "--reference", str(photographs), "--num-images", "4"]
    command += ["--metrics", "fd_dinov2,clipscore", "--resize", "32", "--batch-size", "3", *flags(weights, tmp_path)]
    teacher = ["--teacher", str(student.with_name(student.name + "-teacher")), "--teacher-steps", "2"]
    assert run([*command, *teacher, "--steps", "1,2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["steps"]) for row in answer["rows"]] == [("teacher", 2), ("student", 1), ("student", 2)]
    assert all(row["pictures"] == 4 for row in answer["rows"])
    page = Path(answer["page"]).read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and page.count("<img") == 12 and "CLIPScore over steps" in page
    assert "decibels over" in page and all(len(row["octaves"]) == 5 for row in answer["rows"])
    paired = {(one["first"], one["second"]) for one in answer["paired"]}
    assert len(paired) == 2 and all(first.endswith("guidance 4.5") for first, _ in paired)

    drawn = tmp_path / "runs" / "cache" / "drawn"
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")}
    assert len(before) == 12
    next(iter(sorted(before))).unlink()
    assert run([*command, "--steps", "1,2", "--set", "seed=0,1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(row["set"], row["steps"]) for row in answer["rows"]] == [
        ({"seed": "0"}, 1),
        ({"seed": "0"}, 2),
        ({"seed": "1"}, 1),
        ({"seed": "1"}, 2),
    ]
    after = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")}
    unchanged = [path for path in before if after.get(path) == before[path]]
    assert len(unchanged) == 11 and len(after) in (19, 20)  # one was deleted, maybe the teacher's


def test_a_row_that_cannot_be_drawn_leaves_the_others(
    student: Path, weights: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--student", str(student), "--reference", str(photographs), "--num-images", "4"]
    command += ["--metrics", "fd_dinov2", "--steps", "1", *flags(weights, tmp_path)]
    assert run([*command, "--guidance", "4.5,99"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    errors = [row.get("error") for row in rows]
    assert errors[0] is None and "guidance" in str(errors[1])


def test_seeds_of_a_prompt_are_compared_by_lpips(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "hub/checkpoints" / BACKBONE)
    command = ["evaluate", "--student", str(student), "--steps", "1", "--metrics", "lpips", "--num-images", "4"]
    command += ["--set", "diversity_captions=2", "--set", "diversity_seeds=3", "--device", "cpu", "--json"]
    assert run([*command, "--workspace", str(tmp_path / "runs")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["lpips"] > 0 and row["pictures"] == 4
    assert len(list((tmp_path / "runs/cache/drawn").rglob("*.png"))) == 4 + 2 * 3


def test_prompt_lists_of_protocols(tmp_path: Path) -> None:
    coco = {
        "annotations": [
            {"image_id": 9, "id": 5, "caption": "later  picture"},
            {"image_id": 2, "id": 8, "caption": "second"},
            {"image_id": 2, "id": 3, "caption": "first\n"},
        ]
    }
    mjhq = {"a1": {"category": "food", "prompt": "a cake"}, "a2": {"category": "food", "prompt": "a pie"}}
    for content, expected in (
        (coco, ("first", "later picture")),
        (mjhq, ("a cake", "a pie")),
        (["x", "y"], ("x", "y")),
    ):
        (tmp_path / "list.json").write_text(json.dumps(content))
        assert read_prompt_list(tmp_path / "list.json") == expected
    for text in ("{", "{}", "3"):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(UsageError, match=r"cannot read|holds no prompts"):
            read_prompt_list(tmp_path / "list.json")


def test_a_protocol_wants_its_prompts(
    weights: dict[str, Path], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--protocol", "coco-5k", "--reference", str(photographs), *flags(weights, tmp_path)]
    assert run(command) == 2
    assert "coco-5k needs its prompts" in capsys.readouterr().err
    (tmp_path / "few.txt").write_text("a cat\na dog\n")
    assert run([*command, "--prompts", str(tmp_path / "few.txt")]) == 2
    assert "holds 2 prompts, and 5000 pictures" in capsys.readouterr().err
    assert run([*command, "--prompts", str(tmp_path / "few.txt"), "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["num_images"] == 5000 and planned["resize"] == 256 and "clipscore" in planned["metrics"]
    assert set(PROTOCOLS) == {"coco-30k", "coco-5k", "mjhq-30k"}


def test_differences_of_two_protocols_are_named() -> None:
    one = {"resize": 256, "num_images": 30_000, "dtype": "bf16"}
    assert differences(one, {**one, "resize": None}) == ["resize: 256 and None"]
    assert differences(one, dict(one)) == []
    networks = [{"networks": {"inception": {"weights": name, "name": "x"}}} for name in "ab"]
    assert differences(*networks) == ["networks.inception.weights: a and b"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": ("fid,kdi",), "reference": "x"}, "metrics = kdi"),
        ({"metrics": ("fid",)}, "there is no --reference"),
        ({"save_statistics": Path("x.npz"), "metrics": ("is",)}, "save-statistics"),
        ({"pictures": Path("x"), "metrics": ("lpips",)}, "lpips draws"),
        ({"resize": 1}, "resize = 1"),
    ],
    ids=["typo", "no-reference", "nothing-to-save", "lpips", "tiny"],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MeasureConfig(**values)


def test_pictures_are_read_as_they_are_meant(tmp_path: Path) -> None:
    see_through = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    see_through.save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png") == 255).all()
    turned = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(2, 8, 3))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "b.png", exif=exif)
    assert read_picture(tmp_path / "b.png").shape == (8, 2, 3)
    Image.new("L", (5, 3), 7).save(tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png").shape == (3, 5, 3)
    with pytest.raises(UsageError, match="holds no pictures"):
        of_folder(tmp_path / "none" if (tmp_path / "none").mkdir() is None else tmp_path)
    assert EvaluateConfig().num_images == 150
