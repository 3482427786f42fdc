"""Weights as others publish them, made here in the same layouts, become students that draw what they should."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddx.cli.main import run
from ddx.errors import DdxError, UsageError
from ddx.export.single_file import write_single_file
from ddx.importing.config import ImportConfig
from ddx.importing.pickles import read_pickle, tensors_of
from ddx.importing.run import import_student
from ddx.sampling.pipeline import StudentPipeline
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from pipelines import make_stable_diffusion
from tiny import Tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    torch.set_num_threads(1)
    return load_teacher(make_stable_diffusion(tmp_path_factory.mktemp("sd") / "teacher"))


@pytest.fixture(scope="module")
def changed(teacher: Teacher) -> dict[str, Tensor]:
    """The teacher's denoiser, every weight moved: what somebody distilled."""
    generator = torch.Generator().manual_seed(1)
    state = teacher.network().state_dict()
    return {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in state.items()}


def imported(teacher: Teacher, path: Path, **settings: Any) -> StudentFolder:
    out = path.parent / f"student-{path.stem}"
    return StudentFolder(import_student(str(path), ImportConfig(teacher=str(teacher.folder), out=out, **settings)))


def assert_holds(student: StudentFolder, expected: dict[str, Tensor]) -> None:
    found = student.weights()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_state_dict_in_the_wrappers_that_people_use(
    teacher: Teacher, changed: dict[str, Tensor], tmp_path: Path
) -> None:
    """DMD2's files are a plain state dict; others wrap it, or call it by the names of their trainers."""
    as_module = {f"module.unet.{name}": value for name, value in changed.items()}
    for number, content in enumerate((changed, {"state_dict": as_module, "step": 3}, {"ema": changed, "G": {}})):
        path = tmp_path / f"weights-{number}.bin"
        torch.save(content, path)
        assert_holds(imported(teacher, path), changed)
    save_file({name: value.half() for name, value in changed.items()}, tmp_path / "half.safetensors")
    student = imported(teacher, tmp_path / "half.safetensors")
    assert_holds(student, {name: value.half() for name, value in changed.items()})


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_in_its_authors_names(prefix: str, tmp_path: Path) -> None:
    """What `ddx export --format single-file` writes, and with the prefix of ComfyUI's checkpoints."""
    teacher = load_teacher(Tiny("flux1").make(tmp_path / "teacher"))
    network = teacher.new_student_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    teacher.save_student(tmp_path / "student", network)
    write_single_file(StudentFolder(tmp_path / "student"), tmp_path / "plain.safetensors")
    state = {prefix + name: value for name, value in load_file(tmp_path / "plain.safetensors").items()}
    save_file(state, tmp_path / "file.safetensors")
    assert_holds(imported(teacher, tmp_path / "file.safetensors"), StudentFolder(tmp_path / "student").weights())
    state.pop(f"{prefix}img_in.bias")
    save_file(state, tmp_path / "fewer.safetensors")
    with pytest.raises(UsageError, match=r"it lacks x_embedder\.bias"):
        imported(teacher, tmp_path / "fewer.safetensors")


class Fragile(nn.Module):
    """A module whose class the reader has not."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("scratch", torch.ones(3), persistent=False)


def test_a_pickled_module_is_read_without_its_class(
    teacher: Teacher, changed: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the snapshots of SiD: a dict with a whole network in it, in the oldest and the newest protocol."""
    network = teacher.new_student_network()
    network.load_state_dict(changed)
    module = types.ModuleType("their_networks")
    their: Any = type("Fragile", (Fragile,), {"__module__": "their_networks"})
    module.Fragile = their  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_networks", module)
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        path = tmp_path / f"snapshot-{protocol}.pkl"
        path.write_bytes(pickle.dumps({"ema": network, "loss": 0.1}, protocol=protocol))
        wrapped = tmp_path / f"wrapped-{protocol}.pkl"
        wrapped.write_bytes(pickle.dumps({"ema": their(nn.Linear(2, 3))}, protocol=protocol))
        monkeypatch.delitem(sys.modules, "their_networks")
        assert_holds(imported(teacher, path, max_steps=1), changed)
        found = tensors_of(read_pickle(wrapped)["ema"])
        assert sorted(found) == ["inner.bias", "inner.weight"]
        monkeypatch.setitem(sys.modules, "their_networks", module)


class Persistent:
    """As NVIDIA's persistence pickles a module: a function of theirs, and its state in the argument."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        meta = {"type": "class", "module_src": "import os", "class_name": "Net", "state": self.network.__dict__}
        return rebuild, (meta,)


def rebuild(meta: Any) -> None:
    raise AssertionError("their code runs")


def test_a_module_pickled_with_its_source_is_read_by_its_state(
    teacher: Teacher, changed: dict[str, Tensor], tmp_path: Path
) -> None:
    network = teacher.new_student_network()
    network.load_state_dict(changed)
    path = tmp_path / "network-snapshot-001.pkl"
    path.write_bytes(pickle.dumps({"G_ema": Persistent(network), "fake": 1}))
    assert_holds(imported(teacher, path, entry="G_ema"), changed)


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (self.command,)


def test_nothing_in_a_pickle_is_executed(teacher: Teacher, changed: dict[str, Tensor], tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    for number, content in enumerate(({"ema": Evil(f"touch {mark}")}, {"ema": changed, "hook": Evil(f"touch {mark}")})):
        path = tmp_path / f"evil-{number}.pkl"
        path.write_bytes(pickle.dumps(content))
        if number == 0:
            with pytest.raises(UsageError, match="holds no tensors"):
                imported(teacher, path)
        else:
            assert_holds(imported(teacher, path), changed)
        assert not mark.exists()
    zipped = tmp_path / "evil.bin"
    torch.save({"ema": Evil(f"touch {mark}")}, zipped)
    with pytest.raises(UsageError, match="cannot be read as data"):
        imported(teacher, zipped)
    assert not mark.exists()


def test_guidance_as_an_input_is_folded_in(teacher: Teacher, tmp_path: Path) -> None:
    """A latent consistency model: its own pipeline at one guidance is the student."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

    plain: Any = teacher.network()
    torch.manual_seed(3)
    unet = UNet2DConditionModel(**{**plain.config, "time_cond_proj_dim": 32})
    unet.load_state_dict(plain.state_dict(), strict=False)
    nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.05)
    unet.save_pretrained(tmp_path / "lcm")
    student = imported(teacher, tmp_path / "lcm" / "diffusion_pytorch_model.safetensors", guidance=7.5)
    pipeline = LatentConsistencyModelPipeline.from_pretrained(
        teacher.folder,
        unet=unet,
        scheduler=LCMScheduler.from_pretrained(student.folder, subfolder="scheduler"),
        requires_safety_checker=False,
        safety_checker=None,
        feature_extractor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    opened = StudentPipeline(student.folder, device="cpu")
    for steps in (1, 4):
        asked = {"num_inference_steps": steps, "height": 64, "width": 64, "output_type": "latent"}
        theirs = pipeline("cat", guidance_scale=7.5, generator=torch.Generator().manual_seed(0), **asked).images
        other = pipeline("cat", guidance_scale=2.0, generator=torch.Generator().manual_seed(0), **asked).images
        call = {**student.call_arguments(steps), "output_type": "latent"}
        ours = opened.pipeline("cat", generator=torch.Generator().manual_seed(0), **call).images
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max() < (other - theirs).abs().max()
    with pytest.raises(UsageError, match="take guidance as an input"):
        imported(teacher, tmp_path / "lcm" / "diffusion_pytorch_model.safetensors")


def lora_tensors(teacher: Teacher, layout: str) -> dict[str, Tensor]:
    """A LoRA on the attention's queries, rank 2 and alpha 4, in diffusers' or in kohya's names."""
    generator, found = torch.Generator().manual_seed(2), {}
    for name, module in teacher.network().named_modules():
        if not name.endswith("attn2.to_q"):
            continue
        assert isinstance(module, nn.Linear)
        down = 0.3 * torch.randn(2, module.in_features, generator=generator)
        up = 0.3 * torch.randn(module.out_features, 2, generator=generator)
        if layout == "diffusers":
            found |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": 2.0 * up}
        else:
            key = f"lora_unet_{name.replace('.', '_')}"
            found |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(4.0)}
    return found


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_turbo_lora_is_merged_with_its_alpha(teacher: Teacher, layout: str, tmp_path: Path) -> None:
    save_file(lora_tensors(teacher, layout), tmp_path / "lora.safetensors")
    student = imported(teacher, tmp_path / "lora.safetensors", sampler="ode", max_steps=8)
    found, before = student.weights(), teacher.network().state_dict()
    products = lora_tensors(teacher, "diffusers")
    for name, value in before.items():
        layer = f"unet.{name.removesuffix('.weight')}"
        expected = value
        if f"{layer}.lora_A.weight" in products:
            expected = value + products[f"{layer}.lora_B.weight"] @ products[f"{layer}.lora_A.weight"]
            assert (expected - value).abs().max() > 0.1
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    assert student.record["imported_as"] == "LoRA" and student.scheduler_class == "DDIMScheduler"


def test_what_does_not_fit_is_refused(teacher: Teacher, changed: dict[str, Tensor], tmp_path: Path) -> None:
    fewer = {name: value for name, value in changed.items() if not name.startswith("mid_block")}
    wider = {**changed, "conv_out.bias": torch.zeros(9)}
    for name, state, message in (("fewer", fewer, "lacks mid_block"), ("wider", wider, "other shapes conv_out.bias")):
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(UsageError, match=message) as error:
            imported(teacher, tmp_path / f"{name}.safetensors")
        assert "--teacher" in str(error.value.hint)
    save_file({"text_encoder.x.lora_A.weight": torch.ones(2, 4)}, tmp_path / "lora.safetensors")
    with pytest.raises(UsageError, match="LoRA"):
        imported(teacher, tmp_path / "lora.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "wider.safetensors").read_bytes()[:5000])
    with pytest.raises(DdxError, match="cannot read"):
        imported(teacher, tmp_path / "cut.safetensors")
    with pytest.raises(UsageError, match=r"no file nowhere\.bin"):
        import_student("nowhere.bin", ImportConfig(teacher=str(teacher.folder)))
    with pytest.raises(UsageError, match="timesteps up to 999"):
        imported(teacher, tmp_path / "wider.safetensors", first_timestep=1000)


def test_the_command_leaves_a_student_that_draws(
    teacher: Teacher, changed: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(changed, tmp_path / "theirs.pt")
    words = ["--teacher", str(teacher.folder), "--workspace", str(tmp_path / "runs")]
    assert run(["import", str(tmp_path / "theirs.pt"), *words, "--first-timestep", "399", "--max-steps", "1"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == tmp_path / "runs" / "students" and "imported" in folder.name
    student = StudentFolder(folder)
    assert student.call_arguments(1)["timesteps"] == [399] and student.trained_steps == 1
    assert "## Draw" in (folder / "README.md").read_text()
    drawn = ["sample", "--prompt", "cat", "--workspace", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]
    assert run(drawn) == 0
    assert run(["import", str(tmp_path / "theirs.pt"), *words, "--out", str(folder)]) == 2
    assert "holds a pipeline already" in capsys.readouterr().err
