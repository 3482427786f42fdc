"""What a precompute takes, counted on tensors without data; the plan that follows; and a store that is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from allocator import measured_peak
from ddx.cli.main import run
from ddx.data.config import PrecomputeConfig
from ddx.data.precompute import precompute
from ddx.data.precompute.encode import CAPTIONS_AT_ONCE, LatentBatches
from ddx.data.precompute.keeping import EncodeKeeping
from ddx.errors import UsageError
from ddx.memory.draw_count import VAE
from ddx.memory.draw_plan import WORKSPACE
from ddx.memory.encode_count import EncodeCounter
from ddx.memory.encode_plan import fit, whole
from ddx.memory.fake_gpu import GPU
from ddx.offload.keeping import BLOCKS, DEVICE, LEAVES, TOGETHER, TURNS, Keeping, coding_parts
from ddx.teachers.families.table import FAMILIES, open_teacher
from ddx.teachers.hub import local_source
from ddx.teachers.parts.batches import ROWS
from ddx.teachers.registry import configs_of, load_teacher
from pipelines import make_sana, make_stable_diffusion
from stores import shard_bytes, write_pairs

LONG = "a " * 400


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return make_sana(root / "sana", text_width=96, layers=4, width=160), make_stable_diffusion(root / "sd", "epsilon")


def counter_of(folder: Path, **settings: Any) -> EncodeCounter:
    teacher = open_teacher(local_source(folder), device=GPU, dtype=torch.float32)
    return EncodeCounter(teacher, PrecomputeConfig(teacher=str(folder), **settings))


def test_encoders_take_what_torchs_allocator_hands_out(folders: tuple[Path, Path]) -> None:
    """SANA's autoencoder at 512 px and Stable Diffusion's with mirrored variances; Gemma and CLIP."""
    for folder, rows, settings in (
        (folders[0], 3, {"resolution": 512}),
        (folders[1], 2, {"resolution": 256, "flip": True, "posterior": "params"}),
    ):
        counter, teacher = counter_of(folder, **settings), load_teacher(folder, dtype="float32")
        vae, bucket = teacher.vae(), counter.bucket
        images = torch.zeros(rows, bucket.height, bucket.width, 3, dtype=torch.uint8)
        config = counter.config

        def encode() -> None:
            batches = LatentBatches(teacher, flip=config.flip, posterior=config.posterior)  # noqa: B023
            batches.add(range(rows), images, bucket)  # noqa: B023

        found = counter.pictures(TURNS, rows)
        inside = sum(p.nbytes for part in coding_parts(vae, "encode") for p in part.parameters())
        assert found.moved == inside
        assert found.peak - inside == pytest.approx(measured_peak(encode), rel=0.03)

        texts = counter.texts({"text_encoder": TOGETHER})
        teacher.encode_text(["a"])  # loads, and keeps what is kept between texts
        peak = measured_peak(lambda: teacher.encode_text([LONG] * ROWS))  # noqa: B023
        assert texts.peak - texts.weights - texts.left == pytest.approx(peak, rel=0.03)
        long = teacher.encode_text([LONG])[0].tokens
        assert texts.a_caption == pytest.approx(long.nbytes, rel=0.02)


def test_what_waits_on_the_host_is_not_counted(folders: tuple[Path, Path]) -> None:
    counter = counter_of(folders[1], resolution=256)
    together, leaves = (counter.texts({"text_encoder": how}) for how in (TOGETHER, LEAVES))
    assert leaves.peak < together.peak - together.weights // 4
    assert together.with_captions(CAPTIONS_AT_ONCE) == together.peak + (CAPTIONS_AT_ONCE - ROWS) * together.a_caption
    pictures = [
        counter.pictures(how, 2, maps=maps).peak for how, maps in ((TURNS, None), (LEAVES, None), (LEAVES, 2**20))
    ]
    assert pictures[0] > pictures[1] > pictures[2]
    drawn = counter_of(folders[1], resolution=256, synthetic=True)
    assert drawn.painter == "unet"
    assert drawn.pictures(TURNS, 2).peak > drawn.pictures(BLOCKS, 2).peak > drawn.pictures(LEAVES, 2).peak


def test_the_cheapest_that_fits_is_chosen(folders: tuple[Path, Path]) -> None:
    counter = counter_of(folders[1], resolution=256)
    resident = whole(counter, 8)
    assert set(resident.keeping.networks.parts.values()) == {DEVICE}
    assert fit(counter, resident.peak + WORKSPACE, 8, (), quiet) == resident
    less = fit(counter, resident.peak + WORKSPACE - 1, 8, (), quiet)
    assert less.keeping.networks.parts == {"text_encoder": TOGETHER, VAE: TURNS}
    assert less.pictures.at_once == 8 and less.peak < resident.peak
    half = fit(counter, counter.pictures(TURNS, 4).peak + less_left(counter) + WORKSPACE, 8, (), quiet)
    assert half.pictures.at_once == 4
    with pytest.raises(UsageError, match=r"the least is about \d+ MB, for the vae") as refused:
        fit(counter, WORKSPACE + 2**16, 8, ("batch_size",), quiet)
    assert refused.value.hint is not None
    megabytes = int(refused.value.hint.split("MB")[0].split()[-1])
    found = fit(counter, megabytes * 10**6, 8, ("batch_size",), quiet)
    assert found.peak <= megabytes * 10**6 and found.pictures.at_once == 8


def less_left(counter: EncodeCounter) -> int:
    return counter.texts({"text_encoder": TOGETHER}).left


def test_fewer_captions_at_once_where_their_embeddings_would_not_fit(folders: tuple[Path, Path]) -> None:
    counter = counter_of(folders[1], resolution=64)
    texts = counter.texts({"text_encoder": TOGETHER})
    found = fit(counter, texts.with_captions(64) + WORKSPACE, 8, (), quiet)
    assert found.keeping.captions_at_once == 64 and found.texts.parts == {"text_encoder": TOGETHER}


@pytest.mark.slow
def test_the_encoders_of_every_family_are_counted() -> None:
    """Named teachers, from the configs in the package."""
    names = ("sana-600m", "sd15", "sdxl", "sd35-medium", "flux1-dev", "pixart-sigma", "pixart-alpha", "auraflow")
    families = set()
    for name in (*names, "z-image", "lumina2", "qwen-image", "flux2-klein-base-4b"):
        teacher = configs_of(name, device=GPU)
        counter = EncodeCounter(teacher, PrecomputeConfig(teacher=name))
        texts = counter.texts(dict.fromkeys(counter.encoders, LEAVES))
        assert 0 < texts.peak < texts.weights and texts.a_caption > 0, name
        assert counter.pictures(TURNS, 1).peak > 0, name
        families.add(teacher.family)
    assert families == {family.name for family in FAMILIES}


@pytest.mark.parametrize("number", [0, 1])
def test_the_store_is_the_same(folders: tuple[Path, Path], number: int, tmp_path: Path) -> None:
    """Byte for byte with networks in turns and in layers, and with other numbers of captions at once."""
    pairs = write_pairs(tmp_path / "pairs.parquet", 10)
    stores = []
    for name, how in (("plain", None), ("turns", TURNS), ("leaves", LEAVES)):
        keeping = None
        if how is not None:
            networks = Keeping(parts={"text_encoder": how, VAE: how}, coding="encode")
            keeping = EncodeKeeping(networks=networks, captions_at_once=3)
        config = PrecomputeConfig(
            teacher=str(folders[number]), out=tmp_path / name, device="cpu", part_rows=4, batch_size=3, resolution=64
        )
        stores.append(shard_bytes(precompute(config, [str(pairs)], keeping=keeping)))
    assert stores[0] == stores[1] == stores[2]


def test_drawn_latents_are_the_same(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet", 5)
    stores = []
    for name, how in (("plain", None), ("blocks", BLOCKS)):
        networks = Keeping(parts={"text_encoder": TOGETHER, "transformer": how or DEVICE}, coding="encode")
        config = PrecomputeConfig(
            teacher=str(folders[0]),
            **{"out": tmp_path / name, "device": "cpu", "part_rows": 4, "batch_size": 3, "resolution": 64},
            synthetic=True,
            synthetic_steps=2,
        )
        keeping = None if how is None else EncodeKeeping(networks=networks, captions_at_once=8)
        stores.append(shard_bytes(precompute(config, [str(pairs)], keeping=keeping)))
    assert stores[0] == stores[1]


def test_the_command_chooses_and_encodes(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user types it: the plan, the store, and one that was made with all on the device."""
    pairs = write_pairs(tmp_path / "pairs.parquet", 6)
    line = ["precompute", str(pairs), "--teacher", str(folders[1]), "--device", "cpu", "--dtype", "float32", "--json"]
    line += ["--resolution", "256", "--max-upscale", "8"]
    counter = counter_of(folders[1], resolution=256)
    megabytes = (counter.pictures(TURNS, 4).peak + less_left(counter) + WORKSPACE) // 10**6 + 1
    small = [*line, "--memory", f"{megabytes}MB"]
    assert run([*small, "--out", str(tmp_path / "small"), "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["batch_size"] == planned["memory"]["pictures"]["at_once"] == 4
    assert planned["memory"]["peak_bytes"] <= megabytes * 10**6
    assert not (tmp_path / "small").exists()
    assert run([*small, "--out", str(tmp_path / "small")]) == 0
    assert run([*small, "--out", str(tmp_path / "small")]) == 0  # goes on with what it chose before
    assert run([*line, "--out", str(tmp_path / "plain"), "--batch-size", "4"]) == 0
    capsys.readouterr()
    assert shard_bytes(tmp_path / "small") == shard_bytes(tmp_path / "plain")
    assert run([*line, "--memory", "30MB", "--out", str(tmp_path / "none")]) == 2
    assert "the least is about" in capsys.readouterr().err


def test_without_weights_a_dry_run_tells_the_memory_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["precompute", str(tmp_path / "a.parquet"), "--teacher", "sd15", "--dry-run"]
    assert run([*line, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["memory"]["captions"]["parts"] == {"text_encoder": DEVICE}
    assert 2.5e9 < planned["memory"]["peak_bytes"] < 4e9
    assert run([*line, "--memory", "1GB"]) == 0
    shown = capsys.readouterr().out
    assert "2 pictures" in shown and "are not here" in shown


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match="--memory is for encoding"):
        PrecomputeConfig(memory="8GB", stage="fetch")
