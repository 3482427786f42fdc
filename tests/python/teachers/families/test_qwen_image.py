"""Qwen-Image: what hides padding, keeps a token's length under guidance, and reaches its sinusoids."""

from __future__ import annotations

import pytest
import torch

from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.parts.packing import pack, unpack
from ddx.teachers.registry import load_teacher
from tiny import Tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(Tiny("qwen-image").make(tmp_path_factory.mktemp("qwen") / "pipeline"), resolution=64)


def test_a_token_is_four_neighbouring_cells() -> None:
    latents = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(tokens[1, 4], latents[1, :, 2:4, 2:4].flatten())  # the second row's second one
    assert torch.equal(unpack(tokens, latents.shape), latents)


def test_padding_changes_nothing(teacher: Teacher) -> None:
    short, long = teacher.encode_text(["cat", "a much longer text"])
    x = torch.randn(2, *teacher.latent_shape(), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    with torch.no_grad():
        both = teacher.predict(teacher.network(), x, t, Condition.cat([short, long]))
        alone = teacher.predict(teacher.network(), x[:1], t[:1], short)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-5)


def test_guidance_keeps_the_length_of_each_token(teacher: Teacher) -> None:
    uncond, cond = torch.randn(2, 3, *teacher.latent_shape(), generator=torch.Generator().manual_seed(0))
    combined = teacher.combine(uncond, cond, torch.tensor([1.0, 3.0, 9.0]).reshape(3, 1, 1, 1))
    torch.testing.assert_close(pack(combined).norm(dim=-1), pack(cond).norm(dim=-1))
    torch.testing.assert_close(combined[0], cond[0])
    assert (combined[1] - cond[1]).abs().max() > 0.1


def test_a_bfloat16_network_sees_exact_times(teacher: Teacher) -> None:
    network = teacher.new_student_network(torch.bfloat16)
    seen: list[torch.Tensor] = []
    sinusoids = network.get_submodule("time_text_embed.time_proj")
    sinusoids.register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0]))
    (condition,) = teacher.encode_text(["cat"])
    x = torch.zeros(2, *teacher.latent_shape())
    t = torch.tensor([0.901, 0.902], dtype=torch.float64)
    with torch.no_grad():
        teacher.predict(network, x, t, condition.expand(2))
    assert torch.equal(seen[0], t.float())
