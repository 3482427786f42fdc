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
from ddx.export.single_file import write_single_file
from ddx.progress import NullProgress
from ddx.run_record import read_run
from ddx.sampling.student import StudentFolder
from ddx.teachers import single_file
from ddx.teachers.registry import TEACHERS, load_teacher
from ddx.teachers.single_file import teacher_folder
from pipelines import fill_hub_cache, make_stable_diffusion
from tiny import Tiny

UNET = "model.diffusion_model."
FIRST = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}
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


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_it_is_the_teacher_of_its_folder(name: str, tmp_path: Path) -> None:
    plain = Tiny(name).make(tmp_path / "plain")
    write_single_file(StudentFolder(plain), tmp_path / "model.safetensors")
    base = tmp_path / "base"  # the small files alone
    shutil.copytree(plain, base, ignore=shutil.ignore_patterns("*.safetensors"))
    folder = convert(tmp_path / "model.safetensors", tmp_path / "teachers", base)
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
        (
            {"joint_blocks.0.context_block.mlp.fc1.bias": (1,)},
            "holds Stable Diffusion 3; ddx converts",
            "--teacher FOL",
        ),
        ({"double_blocks.0.img_attn.qkv.bias": (1,)}, "holds FLUX", "--teacher FOLDER"),
        ({"something": (1,)}, "holds no checkpoint that ddx knows", "--teacher FOLDER"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, "takes 9 channels", "text-to-image"),
        ({**FIRST, TEXT: (320, 77)}, "has the shapes of none of sd15, sd21, sdxl", "--teacher-base NAME|PATH"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    shapes: dict[str, tuple[int, ...]], error: str, hint: str, tmp_path: Path
) -> None:
    file = header(tmp_path / "model.safetensors", shapes)
    with pytest.raises(UsageError, match=error.replace("|", r"\|")) as found:
        convert(file, tmp_path / "teachers")
    assert str(file) in str(found.value) and hint in str(found.value.hint)


def test_parts_pickles_and_other_bases_are_refused(plain: Path, checkpoint: Path, tmp_path: Path) -> None:
    state = {k: v for k, v in load_file(checkpoint).items() if not k.startswith("first_stage_model.")}
    save_file(state, tmp_path / "unet.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    cases: list[tuple[Path, str | Path, str]] = [
        (plain / "unet/diffusion_pytorch_model.safetensors", plain, "is a single file"),
        (tmp_path / "unet.safetensors", plain, "has no vae"),
        (tmp_path / "old.ckpt", plain, "pickled weights are never loaded"),
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
