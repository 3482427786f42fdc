"""A teacher in one file: told from its header, converted once, and the same teacher as its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddx.cli import main
from ddx.errors import DdxError, UsageError
from ddx.export.original_layout import original_vae
from ddx.export.single_file import write_single_file
from ddx.progress import NullProgress
from ddx.run_record import read_run
from ddx.sampling.student import StudentFolder
from ddx.teachers import part_weights, single_file
from ddx.teachers.families.table import FAMILIES, find_family
from ddx.teachers.parts.original_tensors import joined
from ddx.teachers.registry import TEACHERS, load_teacher
from ddx.teachers.single_file import teacher_folder
from pipelines import fill_hub_cache, make_stable_diffusion
from tiny import Tiny

UNET = "model.diffusion_model."
FIRST = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}
FLUX = dict.fromkeys(
    ("double_blocks.0.img_attn.norm.key_norm.scale", "double_blocks.0.img_mod.lin.weight", "vector_in.in_layer.weight"),
    (1,),
)
SANA = {
    "x_embedder.proj.weight": (1152, 32, 1, 1),
    **dict.fromkeys(("blocks.0.cross_attn.kv_linear.weight", "blocks.0.mlp.inverted_conv.conv.weight"), (1,)),
    **dict.fromkeys(("t_block.1.weight", "blocks.27.attn.qkv.weight"), (1,)),
}
TEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stable_diffusion(tmp_path_factory.mktemp("plain") / "sd")


@pytest.fixture(scope="module")
def checkpoint(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("files") / "My model v2.safetensors"
    write_single_file(StudentFolder(plain), file)
    return file


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def convert(file: Path, root: Path, base: str | Path | None = None) -> Path:
    return teacher_folder(file, base=None if base is None else str(base), root=root, progress=NullProgress())


def header(file: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
    return file


def write_original(folder: Path, file: Path) -> Path:
    """The pipeline in `folder` as its authors' checkpoint: a transformer alone, a UNet with the other parts."""
    found = find_family(json.loads((folder / "model_index.json").read_text())["_class_name"])
    if found is None or found.original is None or found.original.unwritable is None:
        write_single_file(StudentFolder(folder), file)
        return file
    weights = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    state = {name: joined(stack, weights) for name, stack in found.original.stacks(weights).items()}
    save_file({**state, **{name: torch.zeros(1) for name in found.original.unread}}, file)
    return file


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_it_is_the_teacher_of_its_folder(name: str, tmp_path: Path) -> None:
    plain = Tiny(name).make(tmp_path / "plain")
    file = write_original(plain, tmp_path / "model.safetensors")
    base = tmp_path / "base"  # the small files alone
    shutil.copytree(plain, base, ignore=shutil.ignore_patterns("*.safetensors"))
    folder = convert(file, tmp_path / "teachers", base)
    ours, theirs = load_teacher(folder), load_teacher(plain)
    for part in ("network", "vae", *(p for p in theirs.stored_parts if p.startswith("text_encoder"))):
        a: Any = getattr(ours, part)() if hasattr(ours, part) else ours.text_encoder(part)
        b: Any = getattr(theirs, part)() if hasattr(theirs, part) else theirs.text_encoder(part)
        for key, value in b.state_dict().items():
            assert torch.equal(a.state_dict()[key], value), (part, key)
    fingerprint, wanted = ours.fingerprint(), theirs.fingerprint()
    assert {**fingerprint, "weights": ""} == {**wanted, "weights": ""}
    assert ours.prediction == theirs.prediction
    (found,), (expected,) = ours.encode_text(["a red cat"]), theirs.encode_text(["a red cat"])
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("name", [row.name for row in FAMILIES if row.original_names])
def test_a_transformer_becomes_the_folder_that_it_came_from(name: str, tmp_path: Path) -> None:
    plain = Tiny(name).make(tmp_path / "plain")
    folder = convert(write_original(plain, tmp_path / "model.safetensors"), tmp_path / "teachers", plain)
    for path in (path for path in plain.rglob("*") if path.is_file()):
        found = folder / path.relative_to(plain)
        if path.suffix == ".safetensors":
            ours, theirs = load_file(found), load_file(path)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
        elif path.name == "model_index.json":
            index = json.loads(found.read_text())
            assert index.items() >= {k: v for k, v in json.loads(path.read_text()).items() if v is not None}.items()
        else:
            assert found.read_bytes() == path.read_bytes(), path
    assert load_teacher(folder).fingerprint() == load_teacher(plain).fingerprint()


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny("stable-diffusion-3").make(tmp_path_factory.mktemp("sd3") / "plain")


def test_what_a_file_holds_beside_the_denoiser_is_the_files(sd3: Path, tmp_path: Path) -> None:
    """A whole checkpoint, as they are published: two CLIPs without and with a projection, no T5."""
    state = {UNET + n: v for n, v in load_file(write_original(sd3, tmp_path / "alone.safetensors")).items()}
    state |= dict(original_vae(load_file(sd3 / "vae/diffusion_pytorch_model.safetensors")))
    clips = {part: load_file(sd3 / part / "model.safetensors") for part in ("text_encoder", "text_encoder_2")}
    clips["text_encoder"].pop("text_projection.weight")
    for letter, weights in zip("lg", clips.values(), strict=True):
        state |= {f"text_encoders.clip_{letter}.transformer.{name}": value for name, value in weights.items()}
    state = {name: value.half() * 2 for name, value in state.items()}  # another model than the base
    save_file({**state, "text_encoders.clip_l.logit_scale": torch.ones(1)}, tmp_path / "whole.safetensors")
    base = tmp_path / "base"
    shutil.copytree(sd3, base)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        (base / part / f"{'diffusion_pytorch_' if part == 'vae' else ''}model.safetensors").unlink()
    teacher = load_teacher(convert(tmp_path / "whole.safetensors", tmp_path / "teachers", base))
    encoders = {part: teacher.text_encoder(part).state_dict() for part in (*clips, "text_encoder_3")}
    projection = encoders["text_encoder"].pop("text_projection.weight")
    assert torch.equal(projection, torch.eye(*projection.shape))
    for part, weights in clips.items():
        assert weights.keys() == encoders[part].keys()
        assert all(torch.equal(encoders[part][name], value.half().float() * 2) for name, value in weights.items())
    t5 = load_file(sd3 / "text_encoder_3/model.safetensors")
    assert torch.equal(encoders["text_encoder_3"]["shared.weight"], t5["shared.weight"])
    vae, before = teacher.vae().state_dict(), load_file(sd3 / "vae/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(vae[name], value.half().float() * 2) for name, value in before.items())
    (file,) = (teacher.folder / "transformer").glob("*.safetensors")
    assert {value.dtype for value in load_file(file).values()} == {torch.float16}


def test_large_weights_are_written_in_pieces(
    sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part_weights, "SHARD", 50_000)
    plain = load_file(sd3 / "transformer/diffusion_pytorch_model.safetensors")
    save_file(plain, tmp_path / "names_turbo.safetensors")  # diffusers' own names are read too
    folder = convert(tmp_path / "names_turbo.safetensors", tmp_path / "teachers", sd3)
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    assert "names_turbo.safetensors is that of a few-step student" in caplog.text
    found = load_teacher(folder).network().state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    with pytest.raises(UsageError, match="which do not say whose configs") as error:
        convert(tmp_path / "names_turbo.safetensors", tmp_path / "teachers")
    assert "--teacher-base NAME|PATH" in str(error.value.hint)


def test_another_base_is_refused(sd3: Path, plain: Path, tmp_path: Path, offline_cache: Path) -> None:
    file = write_original(sd3, tmp_path / "model.safetensors")
    shutil.copytree(sd3, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(sd3, tmp_path / "deep")
    config = json.loads((tmp_path / "deep/transformer/config.json").read_text())
    (tmp_path / "deep/transformer/config.json").write_text(json.dumps({**config, "num_layers": 4}))
    cases: list[tuple[str | Path | None, str]] = [
        (None, "holds Stable Diffusion 3 and 3.5, and has the shapes of none of sd35-medium, sd35-large"),
        (plain, "holds Stable Diffusion 3 and 3.5, and --teacher-base .* is a StableDiffusionPipeline"),
        ("sd15", "--teacher-base sd15 is no folder, and none of sd35-medium, sd35-large"),
        (tmp_path / "small", "lacks the weights of vae, the weights of text_encoder, "),
        (
            tmp_path / "deep",
            r"does not hold a network with the config of deep: it lacks joint_blocks\.2\.",
        ),
        ("sd35-large", "the configs, the tokenizers, vae, text_encoder, .* HF_HUB_OFFLINE is set"),
    ]
    for base, error in cases:
        with pytest.raises(DdxError, match=error) as found:
            convert(file, tmp_path / "teachers", base)
        assert found.value.hint
    assert '--include "text_encoder_3/*.safetensors"' in str(found.value.hint)
    with pytest.raises(UsageError, match="with the config of sana-tiny: it lacks"):
        convert(header(tmp_path / "sana.safetensors", SANA), tmp_path / "teachers", "sana-tiny")
    assert [path.name for path in (tmp_path / "teachers").iterdir()] == [".converting"]


def test_it_is_converted_once_and_known_by_its_bytes(
    plain: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(checkpoint, tmp_path / "teachers", plain)
    assert folder.name.startswith("My-model-v2-") and not list((tmp_path / "teachers").glob(".*.tmp"))
    record = read_run(folder)
    assert record is not None and record["sha256"].startswith(folder.name[-12:])
    assert not load_teacher(folder).draws_scenes

    def never(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(single_file, "_convert", never)
    assert convert(checkpoint, tmp_path / "teachers", plain) == folder
    moved = Path(shutil.copy(checkpoint, tmp_path / "renamed.safetensors"))
    assert convert(moved, tmp_path / "teachers", plain) == folder
    state = load_file(checkpoint)
    state[f"{UNET}out.2.bias"] += 1
    save_file(state, moved)
    with pytest.raises(AssertionError, match="converted again"):
        convert(moved, tmp_path / "teachers", plain)


def test_half_precision_stays_half(plain: Path, checkpoint: Path, tmp_path: Path) -> None:
    state = {k: v.half() if k.startswith(UNET) else v for k, v in load_file(checkpoint).items()}
    save_file(state, tmp_path / "half.safetensors")
    folder = convert(tmp_path / "half.safetensors", tmp_path / "teachers", plain)
    for part, dtype in (("unet", torch.float16), ("vae", torch.float32), ("text_encoder", torch.float32)):
        (file,) = (folder / part).glob("*.safetensors")
        assert {value.dtype for value in load_file(file).values()} == {dtype}
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    original = load_file(plain / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(unet[key], value.half()) for key, value in original.items())


@pytest.mark.parametrize(("width", "base"), [(768, "sd15"), (1024, "sd21"), (2048, "sdxl")])
def test_shapes_tell_the_base_and_offline_the_error_names_what_to_fetch(
    width: int, base: str, tmp_path: Path, offline_cache: Path
) -> None:
    file = header(tmp_path / "model.safetensors", {**FIRST, TEXT: (320, width)})
    with pytest.raises(DdxError, match=rf"the configs and tokenizers of {base} .* HF_HUB_OFFLINE") as error:
        convert(file, tmp_path / "teachers")
    spec = TEACHERS[base]
    command = f'hf download {spec.source} --revision {spec.revision} --include "*.json" --include "*.txt"'
    assert command in str(error.value.hint)


def test_a_base_in_the_cache_needs_no_weights(
    plain: Path, checkpoint: Path, tmp_path: Path, offline_cache: Path
) -> None:
    shutil.copytree(plain, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    fill_hub_cache(offline_cache, TEACHERS["sd15"].source, tmp_path / "small")
    folder = convert(checkpoint, tmp_path / "teachers", "sd15")
    (offline_cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5").rename(tmp_path / "gone")
    assert convert(checkpoint, tmp_path / "teachers", "sd15") == folder
    assert load_teacher(folder).default_resolution == 64


@pytest.mark.parametrize(
    ("shapes", "error", "hint"),
    [
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": (1, 1)}, "holds a LoRA", "pipe.fuse_lora()"),
        (FLUX, "holds a network without guidance, as FLUX.1-schnell", "flux1-dev"),
        (
            {**FLUX, "distilled_guidance_layer.in_proj.weight": (1,)},
            "holds Chroma",
            "text-to-image",
        ),
        (
            {**FLUX, "guidance_in.in_layer.weight": (1,), "img_in.weight": (3072, 384)},
            "holds FLUX.1, and has the shapes of none of flux1-dev",
            "--teacher-base NAME|PATH",
        ),
        (SANA, "has the shapes of sana-600m and of sana-600m-1024", "--teacher-base NAME|PATH"),
        ({"control_model.input_blocks.0.0.weight": (1,)}, "holds a ControlNet", "text-to-image"),
        ({"conditioner.embedders.0.model.ln_final.bias": (1,)}, "holds the refiner of", "text-to-image"),
        ({"first_stage_model.decoder.conv_in.weight": (1,)}, "holds an autoencoder and no denoiser", "--teacher-base"),
        ({"encoder.block.0.layer.0.layer_norm.weight": (1,)}, "holds a text encoder and no denoiser", "--teacher-base"),
        ({**FIRST, f"{UNET}scaled_fp8": (1,)}, "holds quantised weights .*scaled_fp8", "bf16 or fp16"),
        ({"something": (1,)}, "holds no checkpoint that ddx knows: its first tensor is some", "--teacher FOLDER"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "holds a UNet under diffusers' names", "put the file there"),
        ({"diffusion_model.double_blocks.0.img_attn.proj.lokr_w1": (1,)}, "holds a LoRA", "pipe.fuse_lora()"),
        ({}, "holds no tensors", "the right file"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, "takes 9 channels", "text-to-image"),
        ({**FIRST, TEXT: (320, 77)}, "has the shapes of none of sd15, sd21, sdxl", "--teacher-base NAME|PATH"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    shapes: dict[str, tuple[int, ...]], error: str, hint: str, tmp_path: Path
) -> None:
    file = header(tmp_path / "model.safetensors", shapes)
    with pytest.raises(UsageError, match=error) as found:
        convert(file, tmp_path / "teachers")
    assert str(file) in str(found.value) and hint in str(found.value.hint)


def test_parts_pickles_and_other_bases_are_refused(plain: Path, checkpoint: Path, tmp_path: Path) -> None:
    state = {k: v for k, v in load_file(checkpoint).items() if not k.startswith("first_stage_model.")}
    save_file(state, tmp_path / "unet.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    (tmp_path / "model.Q4.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>")
    (tmp_path / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (tmp_path / "text.safetensors").write_bytes(b"some notes, no weights")
    (tmp_path / "start.safetensors").write_bytes(checkpoint.read_bytes()[:1000])
    (tmp_path / "half.safetensors").write_bytes(checkpoint.read_bytes()[:-1000])
    cases: list[tuple[Path, str | Path, str]] = [
        (plain / "unet/diffusion_pytorch_model.safetensors", plain, "is a single file"),
        (tmp_path / "unet.safetensors", plain, "has no vae"),
        (tmp_path / "old.ckpt", plain, "pickled weights are never loaded"),
        (tmp_path / "model.Q4.gguf", plain, "holds quantised weights"),
        (tmp_path / "empty.safetensors", plain, "empty.safetensors is empty"),
        (tmp_path / "page.safetensors", plain, "is a web page"),
        (tmp_path / "lfs.safetensors", plain, "is a pointer of git-lfs"),
        (tmp_path / "text.safetensors", plain, "is no safetensors file"),
        (tmp_path / "start.safetensors", plain, "is cut short, within its header"),
        (tmp_path / "half.safetensors", plain, "is cut short: it has"),
        (tmp_path / "none.safetensors", plain, "no such file"),
        (checkpoint, "sana-tiny", "--teacher-base sana-tiny is no folder, and none of sd15, sd21, sdxl"),
        (checkpoint, tmp_path, "model_index.json"),
    ]
    for file, base, error in cases:
        with pytest.raises(DdxError, match=error) as found:
            convert(file, tmp_path / "teachers", base)
        assert found.value.hint
    save_file({k: v[:1] for k, v in load_file(checkpoint).items()}, tmp_path / "cut.safetensors")
    with pytest.raises(DdxError, match=r"does not open"):
        convert(tmp_path / "cut.safetensors", tmp_path / "teachers", plain)
    assert [path.name for path in (tmp_path / "teachers").iterdir()] == [".converting"]


def test_a_command_sees_the_folder(
    plain: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["scenes", str(tmp_path / "pairs.parquet"), "--rows", "4", "--quiet"]) == 0
    capsys.readouterr()
    workspace = tmp_path / "runs"
    line = ["precompute", str(tmp_path / "pairs.parquet"), "--dry-run", "--json", "--workspace", str(workspace)]
    assert main.run([*line, "--teacher", str(checkpoint), "--teacher-base", str(plain)]) == 0
    captured = capsys.readouterr()
    (folder,) = (workspace / "teachers").glob("My-model-v2-*")
    assert json.loads(captured.out)["teacher"] in (str(folder), folder.name)
    assert "converting it to" in captured.err
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"teacher: {checkpoint}\nteacher-base: {plain}\n")
    assert main.run([*line, "--config", str(settings)]) == 0
    assert "converting" not in capsys.readouterr().err
    assert main.run([*line, "--teacher", "sana-tiny", "--teacher-base", "sd15"]) == 2
    assert "--teacher-base sd15 is for a --teacher in one file" in capsys.readouterr().err
