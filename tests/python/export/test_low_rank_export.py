"""A whole student as a LoRA: what it keeps is what it says, and at full rank it draws what the student draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from ddx.cli import main
from ddx.errors import DdxError, UsageError
from ddx.export import low_rank
from ddx.export.config import ExportConfig
from ddx.export.export import export
from ddx.export.low_rank import cut_difference
from ddx.networks.lora import add_lora, low_rank_products
from ddx.networks.lora_files import write_comfyui_file, write_diffusers_file
from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE, diffusers_config
from ddx.run_record import write_run
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.teachers.families.stable_diffusion import StableDiffusionTeacher
from ddx.teachers.registry import load_teacher
from ddx.workspace import Workspace
from distilling import make_teacher

CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv_in")  # 3x3 and 1x1
SEEN: dict[str, Teacher] = {}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["flow", "eps"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    if request.param not in SEEN:
        SEEN[request.param] = make_teacher(request.param, tmp_path_factory.mktemp(request.param) / "teacher")
    return SEEN[request.param]


@pytest.fixture
def vp_teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    if "eps" not in SEEN:
        SEEN["eps"] = make_teacher("eps", tmp_path_factory.mktemp("eps") / "teacher")
    return SEEN["eps"]


def moved(teacher: Teacher, folder: Path, *, everything: bool = False) -> Path:
    """A student whose difference lies in the target layers and the folded bias, or everywhere."""
    network, generator = teacher.new_student_network(), torch.Generator().manual_seed(3)
    linear = teacher.time_embedding_linear(network)
    with torch.no_grad():
        linear.bias.add_(0.1 * torch.randn(linear.bias.shape, generator=generator))
        for name, parameter in network.named_parameters():
            layer, _, kind = name.rpartition(".")
            if everything or (kind == "weight" and layer.endswith(teacher.lora_targets)):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    teacher.save_student(folder, network)
    record = {"teacher": str(teacher.folder), "teacher_revision": "local", "resolution": 64, "guidance": 3.0}
    write_run(folder, {"kind": "student", **record}, finished=True)
    return folder


def draw(pipeline: Any, files: StudentFolder) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents: Tensor = pipeline(
        "a red circle", generator=generator, output_type="latent", **files.call_arguments(2)
    ).images
    return latents


def opened(folder: Path, **parts: Any) -> Any:
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_to(folder: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return export(folder, ExportConfig(out=out, **settings), Workspace(out.parent)).to_dict()


@pytest.mark.parametrize("convolutions", [False, True])
def test_at_full_rank_it_draws_what_the_merged_student_draws(
    teacher: Teacher, convolutions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if convolutions and teacher.family != "stable-diffusion":
        pytest.skip("its convolutions of 3x3 are grouped")
    if convolutions:
        targets = (*StableDiffusionTeacher.lora_targets, *CONVOLUTIONS)
        monkeypatch.setattr(StableDiffusionTeacher, "lora_targets", targets)
    folder = moved(teacher, tmp_path / "student")
    facts = export_to(folder, tmp_path / "lora", format="lora", rank=10_000)
    assert facts["kept"] == pytest.approx(1.0, abs=1e-12) and facts["outside"] == 0.0
    files = StudentFolder(folder)
    merged = opened(folder)
    expected = draw(merged, files)
    pipeline = opened(teacher.folder, scheduler=merged.scheduler)
    scale = max(1.0, float(expected.std()))  # random weights draw latents far from the unit scale
    assert (draw(pipeline, files) - expected).abs().max() > 1e-2 * scale
    pipeline.load_lora_weights(tmp_path / "lora")
    assert (draw(pipeline, files) - expected).abs().max() <= 1e-5 * scale


def energy_by_hand(teacher: Teacher, folder: Path, rank: int) -> tuple[float, float]:
    """The energy that the best matrices keep, and all of it, by numpy's singular values."""
    network = teacher.network()
    base, student = network.state_dict(), StudentFolder(folder).weights()
    linear = teacher.time_embedding_linear(network)
    kept = total = 0.0
    for name, value in student.items():
        difference = value.double().numpy() - base[name].double().numpy()
        total += float((difference**2).sum())
        module: Any = network.get_submodule(name.rpartition(".")[0])
        named = any(name.endswith(f".{target}.weight") for target in teacher.lora_targets)
        fits = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if name.endswith(".weight") and ((named and fits) or module is linear):
            values = np.linalg.svd(difference.reshape(len(difference), -1), compute_uv=False)
            kept += float((values[:rank] ** 2).sum())
        elif module is linear:
            kept += float((difference**2).sum())
    return kept, total


def test_the_share_of_energy_is_that_of_singular_values_and_of_the_file_itself(
    teacher: Teacher, tmp_path: Path
) -> None:
    folder, shares = moved(teacher, tmp_path / "student", everything=True), []
    for rank in (1, 2, 5, 10_000):
        facts = export_to(folder, tmp_path / f"lora-{rank}", format="lora", rank=rank)
        kept, total = energy_by_hand(teacher, folder, rank)
        assert facts["kept"] == pytest.approx(kept / total, rel=1e-6)
        state = load_file(tmp_path / f"lora-{rank}" / DIFFUSERS_FILE)
        written = sum(
            float((state[key.replace("lora_A", "lora_B")].flatten(1) @ value.flatten(1)).double().square().sum())
            for key, value in state.items()
            if "lora_A" in key
        )
        written += sum(float(value.double().square().sum()) for key, value in state.items() if key.endswith("B.bias"))
        assert written / total == pytest.approx(facts["kept"], rel=1e-5)
        shares.append(facts["kept"])
    assert shares == sorted(shares) and len(set(shares)) == len(shares)
    assert shares[-1] + facts["outside"] == pytest.approx(1.0) and facts["outside"] > 0.01


@pytest.mark.parametrize("shape", [(520, 640), (640, 520)])
def test_few_vectors_of_a_large_matrix_keep_as_much_as_singular_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    size = min(shape)
    left, _ = torch.linalg.qr(torch.randn(shape[0], size, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(shape[1], size, generator=generator, dtype=torch.float64))
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -0.5  # a slow fall: each octave has the same energy
    difference = (left * values) @ right.T
    product, kept = low_rank._best(difference, 20)
    assert kept == pytest.approx(float(values[:20].square().sum()), rel=1e-4)
    rest = difference - product.up.double() @ product.down.double()
    assert float(rest.square().sum()) == pytest.approx(float(values.square().sum()) - kept, rel=1e-6)


def test_comfyuis_file_holds_the_same_products(vp_teacher: Teacher, tmp_path: Path) -> None:
    folder = moved(vp_teacher, tmp_path / "student", everything=True)
    for kind, name in (("lora", DIFFUSERS_FILE), ("comfyui", COMFYUI_FILE)):
        export_to(folder, tmp_path / name, format=kind, rank=3)
    ours, theirs = load_file(tmp_path / DIFFUSERS_FILE), load_file(tmp_path / COMFYUI_FILE)
    layers = {key.removeprefix("unet.").partition(".lora_")[0] for key in ours}
    for layer in layers:
        product = ours[f"unet.{layer}.lora_B.weight"].flatten(1) @ ours[f"unet.{layer}.lora_A.weight"].flatten(1)
        name = f"lora_unet_{layer.replace('.', '_')}"
        if layer == "time_embedding.linear_2":
            torch.testing.assert_close(theirs.pop(f"{name}.diff"), product)
            torch.testing.assert_close(theirs.pop(f"{name}.diff_b"), ours[f"unet.{layer}.lora_B.bias"])
            continue
        up, down = theirs.pop(f"{name}.lora_up.weight"), theirs.pop(f"{name}.lora_down.weight")
        scale = theirs.pop(f"{name}.alpha").item() / len(down)
        torch.testing.assert_close(scale * up.flatten(1) @ down.flatten(1), product)
    assert theirs == {}


def test_a_low_rank_student_hands_out_its_own_file_and_is_cut_to_another_rank(
    vp_teacher: Teacher, tmp_path: Path
) -> None:
    folder = moved(vp_teacher, tmp_path / "student")
    export_to(folder, folder / DIFFUSERS_FILE, format="lora", rank=5)  # as a low-rank training leaves it
    before = load_file(folder / DIFFUSERS_FILE)
    assert export_to(folder, tmp_path / "own", format="lora")["rank"] == 5
    copied = load_file(tmp_path / "own" / DIFFUSERS_FILE)
    assert copied.keys() == before.keys() and all(torch.equal(copied[key], before[key]) for key in before)
    assert diffusers_config(tmp_path / "own") == diffusers_config(folder)
    assert export_to(folder, tmp_path / "cut", format="lora", rank=2)["kept"] < 1.0
    found = diffusers_config(tmp_path / "cut")
    assert found is not None and found["r"] == 2
    export_to(folder, tmp_path / "half", format="lora", dtype="fp16")
    assert {value.dtype for value in load_file(tmp_path / "half" / DIFFUSERS_FILE).values()} == {torch.float16}


def test_another_teacher_and_no_difference_are_said(vp_teacher: Teacher, tmp_path: Path) -> None:
    folder = moved(vp_teacher, tmp_path / "student")
    with pytest.raises(UsageError, match="are not those of sana-tiny, such as") as error:
        export_to(folder, tmp_path / "lora", format="lora", teacher="sana-tiny")
    assert "--teacher" in str(error.value.hint)
    with pytest.raises(DdxError, match="has the weights of its teacher"):
        cut_difference(vp_teacher, vp_teacher.folder / "unet", 4)
    write_run(folder, {"kind": "student"}, finished=True)
    with pytest.raises(UsageError, match="does not say which teacher"):
        export_to(folder, tmp_path / "lora", format="lora")


def test_the_command_says_what_it_keeps(
    vp_teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = moved(vp_teacher, tmp_path / "runs/students/mine", everything=True)
    line = ["export", "--format", "lora", "--rank", "2", "--workspace", str(tmp_path / "runs"), "--quiet"]
    assert main.run([*line, "--dry-run"]) == 0
    assert "rank: 2" in capsys.readouterr().out and not (tmp_path / "runs/exports").exists()
    assert main.run([*line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    path = tmp_path / "runs/exports/mine" / DIFFUSERS_FILE
    assert said["path"] == str(path) and said["student"] == str(folder) and 0 < said["kept"] < 1
    assert main.run(line) == 2
    assert f"{path} exists" in capsys.readouterr().err
    path.unlink()
    assert main.run(line) == 0
    shown = capsys.readouterr().out
    assert f"rank 2, keeps {said['kept']:.2%} of the energy" in shown and f"{said['outside']:.2%} of it" in shown


@pytest.mark.parametrize("family", tiny.NAMES)
def test_every_family_has_the_layers_that_low_rank_training_has(family: str, tmp_path: Path) -> None:
    teacher = load_teacher(tiny.Tiny(family).make(tmp_path / "teacher"))
    network = teacher.new_student_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    teacher.save_student(tmp_path / "student", network)
    denoiser = tmp_path / "student" / teacher.denoiser_part
    linear = teacher.time_embedding_linear(network)
    (time_layer,) = (name for name, module in network.named_modules() if module is linear)
    narrow, wide = (cut_difference(teacher, denoiser, rank) for rank in (1, 4))
    trained = low_rank_products(add_lora(network, teacher.lora_targets, rank=2, alpha=2.0))
    assert set(wide.products) == {*trained, time_layer}
    assert 0 < narrow.kept < wide.kept < wide.total and wide.rank == 4
    for kind, write in (("a", write_diffusers_file), ("b", write_comfyui_file)):
        write(tmp_path / kind, wide.products, teacher, torch.float32)
        assert load_file(tmp_path / kind)
