"""What a drawing takes, counted on tensors without data; and the plan that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from allocator import measured_peak
from ddx.cli.main import run
from ddx.errors import UsageError
from ddx.memory.draw_count import VAE, DrawCounter
from ddx.memory.draw_plan import WORKSPACE, first_that_fits, fit, whole
from ddx.memory.fake_gpu import GPU
from ddx.offload.keeping import BLOCKS, DEVICE, LEAVES, TURNS
from ddx.sampling.config import SampleConfig
from ddx.teachers.encoder_sizes import OF_FAMILY, published_size
from ddx.teachers.families.table import FAMILIES, open_teacher
from ddx.teachers.hub import local_source
from ddx.teachers.registry import configs_of, load_teacher
from pipelines import make_sana, make_stable_diffusion


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("pipelines") / "sana", layers=4, width=160)


@pytest.fixture(scope="module")
def counter(sana: Path) -> DrawCounter:
    teacher = open_teacher(local_source(sana), device=GPU, dtype=torch.float32)
    return DrawCounter(teacher, guided=True, size=512)


def quiet(_: str) -> None:
    pass


def test_a_component_takes_what_torchs_allocator_hands_out(sana: Path, counter: DrawCounter, tmp_path: Path) -> None:
    """The decoder and the denoiser of SANA at 512 px, and a UNet's; what is beside their weights."""
    unet = make_stable_diffusion(tmp_path / "sd", "epsilon")
    teacher = open_teacher(local_source(unet), device=GPU, dtype=torch.float32)
    for folder, count, part in (
        (sana, counter, VAE),
        (sana, counter, "transformer"),
        (unet, DrawCounter(teacher, guided=True, size=512), "unet"),
    ):
        real: Any = load_teacher(folder, dtype="float32")
        text = real.encode_text(["a"])[0]
        network = real.network() if part != VAE else real.vae()
        shape = real.latent_shape(512)
        found = count.count(part, TURNS)
        rows = 1 if part == VAE else 2
        latents = torch.randn(rows, *shape)
        with torch.no_grad():
            if part == VAE:
                peak = measured_peak(lambda: (real.decode_pixels(latents) * 0.5 + 0.5).clamp(0, 1))  # noqa: B023
                inside = sum(p.nbytes for name, p in network.named_parameters() if name.startswith("decoder"))
            else:
                long = count._longest
                condition = type(text)(
                    torch.randn(rows, long, real.text_width),
                    torch.ones(rows, long, dtype=torch.bool),
                    counts=(long,) * 2,
                )
                times = torch.ones(rows, dtype=torch.float64)
                peak = measured_peak(lambda: real.predict(network, latents, times, condition))  # noqa: B023
                inside = found.weights
        assert found.peak - inside == pytest.approx(peak, rel=0.03), part


def test_layers_that_wait_on_the_host_are_not_counted(counter: DrawCounter) -> None:
    turns, blocks, leaves = (counter.count("transformer", how) for how in (TURNS, BLOCKS, LEAVES))
    assert turns.peak > blocks.peak > leaves.peak
    beside = turns.peak - turns.weights
    largest = 2 * 4 * 5 * 160 * 160  # bytes of the widest layer, the one that comes in ahead beside it
    assert leaves.peak <= beside + largest + 2**17
    assert leaves.first <= leaves.peak


def test_maps_that_wait_on_the_host_keep_to_their_limit(counter: DrawCounter) -> None:
    most = counter.count(VAE, LEAVES).peak
    for limit in (2**22, 2**20):
        assert counter.count(VAE, LEAVES, limit).peak < min(most, 2 * limit)


def test_the_cheapest_that_fits_is_chosen(counter: DrawCounter) -> None:
    resident = whole(counter)
    assert set(resident.keeping.parts.values()) == {DEVICE}
    assert fit(counter, resident.peak + WORKSPACE, quiet).keeping.all_on_device
    turns = max(counter.count(part, TURNS).peak for part in counter.parts)
    assert turns < resident.peak
    assert set(fit(counter, turns + WORKSPACE, quiet).keeping.parts.values()) == {TURNS}
    tight = fit(counter, counter.count("transformer", BLOCKS).peak + WORKSPACE, quiet)
    assert tight.keeping.parts["transformer"] == BLOCKS
    less = counter.count(VAE, LEAVES).peak - 1
    decoder = first_that_fits(counter, VAE, less)
    assert decoder.maps is not None and decoder.count.peak <= less


def test_what_does_not_fit_is_refused_with_the_least_that_would_do(counter: DrawCounter) -> None:
    with pytest.raises(UsageError, match=r"the least is about \d+ MB") as refused:
        fit(counter, WORKSPACE + 4096, quiet)
    assert refused.value.hint is not None
    megabytes = int(refused.value.hint.split("MB")[0].split()[-1])
    assert fit(counter, megabytes * 10**6, quiet).peak <= megabytes * 10**6


def test_the_encoders_of_named_teachers_are_as_wide_as_their_denoisers_read() -> None:
    names = {"sana-600m", "sd15", "sdxl", "sd35-medium", "flux1-dev", "pixart-sigma", "pixart-alpha", "auraflow"}
    names |= {"sd21", "z-image", "lumina2", "qwen-image", "flux2-klein-base-4b"}
    families = set()
    for name in names:
        teacher = configs_of(name)
        families.add(teacher.family)
        assert tuple(OF_FAMILY[teacher.family]) == tuple(p for p in teacher.part_classes if p.startswith("text_en"))
        widths = []
        for part in OF_FAMILY[teacher.family]:
            kind, size = published_size(teacher, part)
            assert kind in teacher.part_classes[part]
            sizes = size.get("text_config", size)
            widths.append(sizes.get("hidden_size") or sizes["d_model"])
        layers = 3 if teacher.family == "flux2-klein" else 1  # of the encoder, side by side
        sums = {sum(widths[:k]) for k in (1, 2, 3)} | {width * layers for width in widths}
        assert teacher.text_width in sums, name
    assert families == {family.name for family in FAMILIES}


def test_a_teacher_draws_the_same_within_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a user types it: the plan, the drawing, and the one without --memory."""
    line = ["sample", "--teacher", "sana-tiny", "--prompt", "a red circle", "--steps", "2", "--device", "cpu"]
    line += ["--workspace", str(tmp_path), "--json"]
    assert run([*line, "--memory", "50MB", "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["steps"] == 2 and planned["memory"]["peak_bytes"] <= 50 * 10**6 - WORKSPACE
    assert not (tmp_path / "samples").exists()
    files = []
    for number, more in enumerate(([], ["--memory", "50MB"])):
        assert run([*line, *more, "--out", str(tmp_path / str(number))]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["teacher"] == "sana-tiny"
        files.append(Path(answer["images"][0]["path"]).read_bytes())
    assert answer["memory"] == planned["memory"] and answer["seconds_per_picture"] > 0
    assert files[0] == files[1]
    assert run([*line, "--memory", "45MB"]) == 2
    assert "the least is about" in capsys.readouterr().err


def test_a_teacher_takes_twenty_steps_where_none_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample", "--teacher", "sdxl", "--dry-run", "--json", "--workspace", str(tmp_path)]
    assert run(line) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["steps"] == 20 and planned["call"]["guidance_scale"] == 5.0 and planned["size"] == "1024x1024"


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match="--teacher and --student together"):
        SampleConfig(teacher="sdxl", student=Path("a"))
    with pytest.raises(UsageError, match="without --memory"):
        SampleConfig(quantize="fp8")
