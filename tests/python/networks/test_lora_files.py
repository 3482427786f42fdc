"""The low-rank files, read by the programs that they are for, put onto the teacher what the merged student has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ddx.methods.base import STUDENT, Method, NetworkSpec
from ddx.methods.registry import load_method, method_spec
from ddx.networks.lora import add_lora
from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE, diffusers_config
from ddx.run_record import write_run
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.training.export import export_student
from distilling import make_teacher

RANK, ALPHA = 4, 32.0
RANGE = {"guidance_min": 3.0, "guidance_max": 6.0}
# a fixed scale; a range of them; a range, and weights that depend on the number of steps
CASES = {"lcm": {"guidance_min": 4.5, "guidance_max": 4.5}, "lcm-range": RANGE, "shortcut": RANGE}


class Ground:
    """A teacher, its own pipeline, and one exported student of each kind."""

    def __init__(self, kind: str, folder: Path) -> None:
        from diffusers import DiffusionPipeline

        self.folder = folder
        self.teacher = make_teacher(kind, folder / "teacher")
        self.pipeline: Any = DiffusionPipeline.from_pretrained(self.teacher.folder, use_safetensors=True)
        self.pipeline.set_progress_bar_config(disable=True)

    def student(self, case: str) -> StudentFolder:
        folder = self.folder / case
        if not folder.exists():
            method, student = low_rank(self.teacher, case)
            notes = export_student(method, student, folder, "float32", torch.float32)
            write_run(folder, {"kind": "student", **method.export_notes(), **notes}, finished=True)
        return StudentFolder(folder)

    def network(self, folder: Path) -> Any:
        """The denoiser of a pipeline's folder, as diffusers opens it."""
        return type(self.teacher.network()).from_pretrained(folder, subfolder=self.teacher.denoiser_part)

    def put(self, network: nn.Module, files: StudentFolder) -> Any:
        """The teacher's pipeline, with this denoiser and the student's scheduler."""
        import diffusers

        scheduler = getattr(diffusers, files.scheduler_class).from_pretrained(files.folder, subfolder="scheduler")
        self.pipeline.register_modules(scheduler=scheduler, **{self.teacher.denoiser_part: network})
        return self.pipeline

    def draw(self, files: StudentFolder, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        arguments = files.call_arguments(steps)
        found: Tensor = self.pipeline("a red circle", generator=generator, output_type="pt", **arguments).images
        return found


@pytest.fixture(scope="module", params=["flow", "eps"])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(request.param, tmp_path_factory.mktemp(request.param))


def low_rank(teacher: Teacher, case: str, *, rank: int = RANK) -> tuple[Method, nn.Module]:
    """A method, and a student of it whose matrices and embedders are far from where they start."""
    name = case.partition("-")[0]
    method = load_method(name, method_spec(name).config(**CASES[case]), teacher)
    method.shares_backbone = True
    student = add_lora(method.build(NetworkSpec(name=STUDENT)), teacher.lora_targets, rank=rank, alpha=ALPHA)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in student.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return method, student.eval()


@pytest.mark.parametrize("case", CASES)
def test_on_the_teacher_it_draws_what_the_merged_student_draws(ground: Ground, case: str) -> None:
    files, part = ground.student(case), ground.teacher.denoiser_part
    for steps in (1, 2):
        folder = files.for_steps(steps)
        ground.put(ground.network(folder), files)
        expected = ground.draw(files, steps)
        network = ground.network(ground.teacher.folder)
        pipeline = ground.put(network, files)
        assert (ground.draw(files, steps) - expected).abs().max() > 1e-2  # the teacher draws something else
        pipeline.load_lora_weights(folder)
        assert (ground.draw(files, steps) - expected).abs().max() <= 1e-5
        pipeline.unload_lora_weights()
        inject_with_peft(network, part, folder)
        assert (ground.draw(files, steps) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("case", ["lcm", "lcm-range"])
def test_the_header_says_what_diffusers_infers_from_the_tensors(ground: Ground, case: str) -> None:
    """All of it: some versions look up keys that are not there."""
    from diffusers.utils.peft_utils import get_peft_kwargs

    files, part = ground.student(case), ground.teacher.denoiser_part
    state = {k.removeprefix(f"{part}."): value for k, value in load_file(files.folder / DIFFUSERS_FILE).items()}
    ranks = {key: value.shape[1] for key, value in state.items() if key.endswith("lora_B.weight")}
    inferred, written = get_peft_kwargs(ranks, None, state), diffusers_config(files.folder)
    assert written is not None
    for config in (inferred, written):
        config["target_modules"] = sorted(config["target_modules"])
    assert written == inferred and written["lora_bias"] == (case == "lcm-range")


def inject_with_peft(network: nn.Module, part: str, folder: Path) -> None:
    """By peft alone: its config is in the file's header, where diffusers keeps it."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    with safe_open(folder / DIFFUSERS_FILE, framework="pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    inject_adapter_in_model(
        LoraConfig(**{key.removeprefix(f"{part}."): value for key, value in config.items()}), network
    )
    state = {key.removeprefix(f"{part}."): value for key, value in load_file(folder / DIFFUSERS_FILE).items()}
    assert not set_peft_model_state_dict(network, state).unexpected_keys


@pytest.mark.parametrize("case", ["lcm", "lcm-range"])
def test_comfyui_and_a1111_read_the_same(ground: Ground, case: str) -> None:
    files, is_sana = ground.student(case), ground.teacher.family == "sana"
    rename = published_sana if is_sana else dict
    lora = load_file(files.folder / COMFYUI_FILE)
    patched = patch_as_comfyui(rename(ground.teacher.network().state_dict()), lora, underscores=not is_sana)
    expected = rename(files.weights())
    assert patched.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(patched[name], value, rtol=0, atol=1e-6)
    if not is_sana:
        known = (
            r"lora_unet_((down|up)_blocks_\d+_attentions_\d+_.+|mid_block_attentions_\d+_.+|time_embedding_linear_2)"
        )
        layers = {key.partition(".")[0] for key in lora}
        assert [layer for layer in layers if not re.fullmatch(known, layer)] == []  # the names that A1111 translates
    if not is_sana and case == "lcm":  # diffusers' own translation of such keys knows no bias
        ground.put(ground.network(files.folder), files)
        drawn = ground.draw(files, 1)
        network = ground.network(ground.teacher.folder)
        ground.put(network, files).load_lora_weights(files.folder, weight_name=COMFYUI_FILE)
        assert (ground.draw(files, 1) - drawn).abs().max() <= 1e-5


def patch_as_comfyui(weights: dict[str, Tensor], lora: dict[str, Tensor], *, underscores: bool) -> dict[str, Tensor]:
    """Apply a LoRA as ComfyUI does: each weight of the model looks for the keys that it may have; none may be left."""
    patched, left = dict(weights), set(lora)
    for name in weights:
        layer, _, kind = name.rpartition(".")
        key = f"lora_unet_{layer.replace('.', '_')}" if underscores else f"diffusion_model.{layer}"
        if kind == "bias" and f"{key}.diff_b" in lora:
            patched[name] = weights[name] + lora[f"{key}.diff_b"]
            left.discard(f"{key}.diff_b")
        if kind == "weight" and f"{key}.diff" in lora:
            patched[name] = weights[name] + lora[f"{key}.diff"]
            left.discard(f"{key}.diff")
        if kind == "weight" and f"{key}.lora_up.weight" in lora:
            up, down = lora[f"{key}.lora_up.weight"].flatten(1), lora[f"{key}.lora_down.weight"].flatten(1)
            scale = lora[f"{key}.alpha"].item() / len(down)
            patched[name] = weights[name] + scale * (up @ down).reshape(weights[name].shape)
            left -= {f"{key}.{end}" for end in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert not left
    return patched


def published_sana(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers SANA state dict as its authors' checkpoints have it: heads of one input are one matrix."""
    state, published = dict(state), {}
    for block in sorted({name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}, key=int):
        ours, theirs = f"transformer_blocks.{block}", f"blocks.{block}"
        for kind in ("weight", "bias"):
            for attention, layers, target in (("attn1", "qkv", "attn.qkv"), ("attn2", "kv", "cross_attn.kv_linear")):
                names = [f"{ours}.{attention}.to_{letter}.{kind}" for letter in layers]
                if names[0] in state:
                    published[f"{theirs}.{target}.{kind}"] = torch.cat([state.pop(name) for name in names])
        for before, after in (
            ("attn1.to_out.0", "attn.proj"),
            ("attn2.to_q", "cross_attn.q_linear"),
            ("attn2.to_out.0", "cross_attn.proj"),
            ("ff.conv_inverted", "mlp.inverted_conv.conv"),
            ("ff.conv_depth", "mlp.depth_conv.conv"),
            ("ff.conv_point", "mlp.point_conv.conv"),
        ):
            for name in [name for name in state if name.startswith(f"{ours}.{before}.")]:
                published[name.replace(f"{ours}.{before}", f"{theirs}.{after}")] = state.pop(name)
    for name in list(state):
        renamed = name.replace("time_embed.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        published[renamed] = state.pop(name)
    return published


@pytest.mark.parametrize("option", ["bf16", "fp16"])
def test_the_matrices_are_saved_as_the_student_is_and_alpha_is_not_rounded(
    ground: Ground, option: str, tmp_path: Path
) -> None:
    rank = 87  # three times it, the rank of what SANA's checkpoints join, is 261: no bfloat16
    method, student = low_rank(ground.teacher, "lcm-range", rank=rank)
    folder = tmp_path / "student"
    export_student(method, student, folder, option, torch.float32)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[option]
    assert {value.dtype for value in load_file(folder / DIFFUSERS_FILE).values()} == {dtype}
    lora = load_file(folder / COMFYUI_FILE)
    for key, value in lora.items():
        if key.endswith(".alpha"):
            assert value.item() == len(lora[key.replace(".alpha", ".lora_down.weight")])

    network = ground.network(ground.teacher.folder)
    ground.put(network, ground.student("lcm")).load_lora_weights(folder)
    plain, base = method.plain_network(student).state_dict(), ground.teacher.network().state_dict()
    (name, *_) = (name for name, _ in network.named_modules() if name.endswith("attn2.to_k"))
    wanted = plain[f"{name}.weight"] - base[f"{name}.weight"]
    # each of the two factors is off by half a unit in the last place at most
    error = (network.get_submodule(name).get_delta_weight("default_0").float() - wanted).norm() / wanted.norm()
    assert error <= 2.5 * torch.finfo(dtype).eps / 2
