from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.networks.guidance import add_guidance_embedder, fold_guidance, guidance_input
from ddx.networks.lora import add_lora, is_lora, plain_state, shared_copy
from ddx.teachers.base import Teacher
from distilling import make_batch, make_teacher


@pytest.fixture(scope="module", params=["flow", "eps"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(request.param, tmp_path_factory.mktemp(request.param) / "pipeline")


def predict(teacher: Teacher, network: nn.Module) -> Tensor:
    batch = make_batch(teacher)
    t = torch.full((4,), round(0.7 * teacher.process.t_max, 1)).double().round(decimals=1)
    with torch.no_grad():
        return teacher.predict(network, batch.x0, t, batch.condition)


def low_rank(teacher: Teacher) -> nn.Module:
    return add_lora(shared_copy(teacher.network()), teacher.lora_targets, rank=4, alpha=8.0).eval()


def shake(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


def test_copies_share_the_backbone_and_nothing_else(teacher: Teacher) -> None:
    first, second = low_rank(teacher), low_rank(teacher)
    base = {p.data_ptr() for p in teacher.network().parameters()}
    for network in (first, second):
        frozen = {p.data_ptr() for p in network.parameters() if not p.requires_grad}
        assert frozen == base
    trained = [{p.data_ptr() for p in n.parameters() if p.requires_grad} for n in (first, second)]
    assert not trained[0] & trained[1] and not trained[0] & base
    before = predict(teacher, teacher.network())
    assert torch.equal(predict(teacher, first), before)  # it starts as the teacher
    shake(first)
    assert not torch.allclose(predict(teacher, first), before)
    assert torch.equal(predict(teacher, second), before) and torch.equal(predict(teacher, teacher.network()), before)


def test_merged_it_is_a_plain_network_that_draws_the_same(teacher: Teacher) -> None:
    network = add_guidance_embedder(teacher, shared_copy(teacher.network()))
    network = add_lora(network, teacher.lora_targets, rank=4, alpha=8.0).eval()
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert "guidance_embedder" in trained
    shake(network)
    with guidance_input(network, 3.0):
        expected = predict(teacher, network)
    plain = fold_guidance(teacher, network, 3.0).eval()
    assert not is_lora(plain) and plain.state_dict().keys() == teacher.network().state_dict().keys()
    found = predict(teacher, plain)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert plain_state(teacher.network()).keys() == teacher.network().state_dict().keys()


def test_names_that_no_layer_has_are_refused(teacher: Teacher) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        add_lora(shared_copy(teacher.network()), ("nowhere",), rank=2, alpha=2.0)
