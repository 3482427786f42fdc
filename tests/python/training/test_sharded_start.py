"""Networks that are spread begin as whole ones, and no rank has more of them in memory than its share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sharded_start
from ddx.checkpoints.shares import part_of
from ddx.networks.guidance import add_guidance_embedder
from ddx.teachers.registry import load_teacher
from ddx.teachers.stored_weights import StandIn, stand_ins, weights_later
from ddx.training.spread_networks import emptied, take_shares
from ddx.training.starting_weights import start_from
from pipelines import make_sana
from tiny import Tiny
from torchrun import torchrun

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def in_pieces(folder: Path) -> Path:
    """Store the network of a pipeline in several files with an index."""
    import diffusers

    network = diffusers.SanaTransformer2DModel.from_pretrained(folder / "transformer")
    (folder / WEIGHTS).unlink()
    network.save_pretrained(folder / "transformer", max_shard_size="20KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    return folder


def test_every_rank_begins_with_its_share_of_the_weights_and_no_more(tmp_path: Path) -> None:
    """Weights in one file and in several, in the dtype of the file and another, with buffers that are in no file and
    tensors that are no buffers; embedders, low-rank matrices and heads begin with the same random numbers."""
    sana, in_half = in_pieces(make_sana(tmp_path / "sana", width=16)), {"teacher_dtype": "bfloat16"}
    rotary, computed = (Tiny(name).make(tmp_path / name) for name in ("qwen-image", "pixart-sigma"))
    judge = {"gan_weight": 0.1}
    jobs: list[dict[str, Any]] = [
        {"teacher": str(sana), "case": {"method": "dmd2", "settings": {"num_steps": 2}}, **in_half},
        {"teacher": str(rotary), "case": {"method": "lcm", "lora_rank": 4, "discriminator": judge}, **in_half},
        {"teacher": str(computed), "case": {"method": "sid"}},
        {"teacher": str(sana), "case": {"method": "preparation"}},
    ]
    large = make_sana(tmp_path / "large", layers=6, width=256)
    half = {name: value.bfloat16() for name, value in load_file(large / WEIGHTS).items()}
    save_file(half, large / WEIGHTS, metadata={"format": "pt"})  # a network in float32 is none that a file is mapped to
    out = tmp_path / "out"
    out.mkdir()
    torchrun(2, sharded_start.__file__, str(out), json.dumps(jobs), str(large))
    for rank in range(2):
        found = json.loads((out / f"{rank}.json").read_text())
        assert [job["differ"] for job in found["jobs"]] == [[]] * len(jobs)
        assert [len(job["said"]) for job in found["jobs"]] == [0, 0, 0, 1]
        assert "whole" in found["jobs"][3]["said"][0]
        memory = found["memory"]
        assert memory["whole"] > 40e6
        assert memory["left"] < 0.51 * memory["whole"]
        assert memory["peak"] <= memory["left"] + memory["largest"] + 1e6, memory


def test_a_network_that_its_files_do_not_fit_is_opened_with_its_weights(tmp_path: Path) -> None:
    folder = make_sana(tmp_path / "tiny", width=16)
    weights = load_file(folder / WEIGHTS)
    weights["patch_embed.proj.old"] = weights.pop("patch_embed.proj.bias")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    teacher = load_teacher(folder, device="cpu")
    with weights_later() as wish, pytest.raises(Exception, match="meta"):  # what diffusers says of such files
        teacher.new_student_network()
    (reason,) = wish.refused
    assert "patch_embed.proj.bias is not in the files" in reason


def test_a_weight_that_is_used_twice_is_one(tmp_path: Path) -> None:
    teacher = load_teacher(make_sana(tmp_path / "tiny", width=16), device="cpu")
    with weights_later():
        network: Any = teacher.new_student_network()
    first, second = network.transformer_blocks[0].attn1, network.transformer_blocks[1].attn1
    second.to_q.weight = first.to_q.weight
    names = stand_ins(network).keys()
    stored = emptied(network)
    assert stored.keys() == names and stand_ins(network) == {}
    assert first.to_q.weight is second.to_q.weight and first.to_q.weight.is_meta
    assert first.to_q.weight.requires_grad and first.to_q.weight.dtype == torch.float32


def test_a_student_of_another_one_begins_with_its_weights_and_keeps_its_embedder(tmp_path: Path) -> None:
    teacher = load_teacher(make_sana(tmp_path / "tiny", width=16), device="cpu")
    weights = {name: value + 1.0 for name, value in teacher.new_student_network().state_dict().items()}
    with weights_later():
        network = add_guidance_embedder(teacher, teacher.new_student_network())
    start_from(network, weights)
    assert all(value.stored is weights[name] for name, value in stand_ins(network).items())
    added = [value for value in network.parameters() if not isinstance(value, StandIn)]
    assert len(stand_ins(network)) == len(weights)
    assert added and not any(value.isnan().any() for value in added)
    with pytest.raises(AssertionError, match=next(iter(weights))):
        start_from(network, dict(list(weights.items())[1:]))


class InTwoFiles:
    """A tensor of a checkpoint that two ranks wrote, half of its first dimension each."""

    def __init__(self, value: torch.Tensor) -> None:
        self.shape, self.dtype, self.halves = value.shape, value.dtype, value.chunk(2)

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        return part_of(torch.cat(self.halves), offset, shape)


@pytest.mark.parametrize("later", [False, True])
def test_a_network_begins_with_what_several_ranks_saved(later: bool, tmp_path: Path) -> None:
    teacher = load_teacher(make_sana(tmp_path / "tiny", width=16), device="cpu")
    weights = {name: value + 1.0 for name, value in teacher.new_student_network().state_dict().items()}
    with weights_later() if later else nullcontext():
        network = teacher.new_student_network()
    start_from(network, {name: InTwoFiles(value) for name, value in weights.items()})
    take_shares(network, emptied(network), torch.device("cpu"))
    assert network.state_dict().keys() == weights.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), name
