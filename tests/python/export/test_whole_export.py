"""Whole students for other programs: the plain folder, and one file in the layout of the original checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddx.cli import main
from ddx.export.config import ExportConfig
from ddx.export.export import export
from ddx.export.original_layout import original_unet
from ddx.run_record import write_run
from ddx.workspace import Workspace
from pipelines import make_stable_diffusion
from students import make_student
from tiny import Tiny

CLASSES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def make_whole(kind: str, folder: Path) -> Path:
    """A student; an `sd2` has OpenCLIP's text encoder, and a UNet with linear projections."""
    if kind == "sdxl":
        Tiny("sdxl").make(folder)
    elif kind == "sd2":
        make_stable_diffusion(folder, "v_prediction", text_act="gelu")
    else:
        make_stable_diffusion(folder)
    write_run(folder, {"kind": "student", "resolution": 64}, finished=True)
    return folder


def run(folder: Path, out: Path, **settings: Any) -> Path:
    return export(folder, ExportConfig(out=out, **settings), Workspace(out.parent)).path


def read_back(kind: str, file: Path, config: Path) -> Any:
    import diffusers

    more = {"add_watermarker": False} if kind == "sdxl" else {"safety_checker": None}
    pipeline: Any = getattr(diffusers, CLASSES[kind])
    return pipeline.from_single_file(str(file), config=str(config), local_files_only=True, **more)


def assert_same_weights(pipeline: Any, other: Any) -> None:
    parts = [name for name in pipeline.components if name.startswith(("unet", "vae", "text_encoder"))]
    assert len(parts) >= 3
    for part in parts:
        ours, theirs = getattr(pipeline, part).state_dict(), getattr(other, part).state_dict()
        assert ours.keys() == theirs.keys()
        different = [key for key, value in theirs.items() if not torch.equal(ours[key], value)]
        assert not different, (part, different[:3])


@pytest.mark.parametrize("kind", CLASSES)
def test_diffusers_reads_a_single_file_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = make_whole(kind, tmp_path / "student")
    original: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    file = run(folder, tmp_path / "whole.safetensors", format="single-file")
    assert_same_weights(read_back(kind, file, folder), original)


@pytest.mark.parametrize("family", ["stable-diffusion-3", "auraflow", "z-image", "qwen-image", "flux2-klein"])
def test_diffusers_reads_a_transformer_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    """The others' sizes are fixed in diffusers' reader: the published networks' test compares their names."""
    import diffusers

    folder = Tiny(family).make(tmp_path / "student")
    write_run(folder, {"kind": "student", "resolution": 64}, finished=True)
    file = run(folder, tmp_path / "whole.safetensors", format="single-file")
    kind: Any = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["transformer"][1])
    found = kind.from_single_file(str(file), config=str(folder), subfolder="transformer", local_files_only=True)
    ours, theirs = found.state_dict(), load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_names_of_diffusers_first_releases_are_known(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = make_whole("sd1", tmp_path / "student")
    original: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for key, value in load_file(path).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[key] = value
    save_file(renamed, path, metadata={"format": "pt"})
    assert any(".proj_attn." in key for key in renamed)
    file = run(folder, tmp_path / "out", format="single-file")
    assert file.name == "student.safetensors"
    assert_same_weights(read_back("sd1", file, folder), original)


@pytest.mark.parametrize(
    ("config", "num", "name", "shape"),
    [  # by which diffusers tells the published checkpoints apart
        ({"cross_attention_dim": 768}, 686, "output_blocks.11.0.skip_connection.weight", (320, 640, 1, 1)),
        (
            {"cross_attention_dim": 1024, "use_linear_projection": True},
            686,
            "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
            (320, 1024),
        ),
        (
            {
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            1680,
            "output_blocks.2.2.conv.weight",
            (1280, 1280, 3, 3),
        ),
    ],
    ids=["sd15", "sd21", "sdxl"],
)
def test_the_real_sizes_have_the_published_names(
    config: dict[str, Any], num: int, name: str, shape: tuple[int, ...]
) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**config)
    found = dict(original_unet(unet.state_dict(), unet.config))
    assert len(found) == num and tuple(found[f"model.diffusion_model.{name}"].shape) == shape


def test_the_unet_alone_takes_another_dtype(tmp_path: Path) -> None:
    file = run(make_whole("sd1", tmp_path / "student"), tmp_path / "half", format="single-file", dtype="fp16")
    state = load_file(file)
    dtypes = {name.split(".")[0]: value.dtype for name, value in state.items()}
    assert dtypes == {
        "model": torch.float16,
        "first_stage_model": torch.float32,
        "cond_stage_model": torch.float32,
    }


def test_a_family_without_such_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_student("flow", tmp_path / "student")
    assert main.run(["export", str(folder), "--format", "single-file"]) == 2
    error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "student is a SanaPipeline, and its original checkpoints cannot be written: their empty caption" in error
    assert "single files are written of Stable Diffusion 1 and 2, Stable Diffusion XL, Stable Diffusion 3" in error
    assert hint.startswith("hint: --format diffusers")


def test_the_plain_folder_opens_and_holds_nothing_of_the_training(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = make_student("flow", tmp_path / "student", step_folders={"1": ".", "2": "steps-2"})
    for name in ("checkpoints/step-1/student.safetensors", "averages/a/model_index.json", "metrics.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "steps-2/transformer").mkdir(parents=True)
    save_file({"a": torch.ones(2)}, folder / "steps-2/transformer/diffusion_pytorch_model.safetensors")
    out = run(folder, tmp_path / "copy", format="diffusers", dtype="bf16")
    assert {path.name for path in out.iterdir()} == {
        *("transformer", "vae", "text_encoder", "tokenizer", "scheduler", "steps-2", "model_index.json", "run.json")
    }
    pipeline: Any = DiffusionPipeline.from_pretrained(out, use_safetensors=True)
    original: Any = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    ours, theirs = pipeline.transformer.state_dict(), original.transformer.state_dict()
    assert all(torch.equal(ours[key], value.bfloat16().float()) for key, value in theirs.items())
    assert load_file(out / "steps-2/transformer/diffusion_pytorch_model.safetensors")["a"].dtype == torch.bfloat16
    assert (out / "vae/diffusion_pytorch_model.safetensors").read_bytes() == (
        folder / "vae/diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_what_does_not_fit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_student("flow", tmp_path / "student")
    for line, error in (
        (["--format", "diffusers", "--rank", "4"], "--rank is for a LoRA"),
        (["--format", "onnx"], "--format onnx: not one of diffusers"),
        (["--format", "diffusers", "--out", str(folder)], "student exists"),
        (["--format", "lora", "--rank", "0"], "rank = 0 must be at least 1"),
        ([], "--format is missing"),
    ):
        assert main.run(["export", str(folder), *line]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert error in lines[-2] and lines[-1].startswith("hint: ")


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "student", {"kind": "student", "teacher": "sana-tiny", "resolution": 64}, finished=True)
    (tmp_path / "student/model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    (tmp_path / "student/transformer").mkdir()
    script = f"""
import sys
from ddx.cli import main
for kind in ("lora", "comfyui", "diffusers"):
    assert main.run(["export", {str(tmp_path / "student")!r}, "--format", kind, "--dry-run"]) == 0
assert not {{"torch", "diffusers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)
