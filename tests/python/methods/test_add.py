from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.errors import DdxError, UsageError
from ddx.methods.add import ADD, ADDConfig
from ddx.methods.base import STUDENT, Turn
from ddx.methods.parts.adversarial import DISCRIMINATOR
from ddx.networks.backbones import load_backbone
from ddx.teachers.base import Teacher
from distilling import assert_gradients_reach_their_networks, make_batch, make_teacher, make_trainer

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["flow", "eps"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(request.param, tmp_path_factory.mktemp(request.param) / "pipeline")


def save_vit(folder: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=5, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    return folder


def save_resnet(folder: Path) -> Path:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    return folder


def test_vision_models_give_maps_of_their_layers_that_gradients_flow_through(tmp_path: Path) -> None:
    pixels = (0.1 * torch.randn(2, 3, 64, 64)).requires_grad_()
    vit = load_backbone(str(save_vit(tmp_path / "vit")), torch.device("cpu"))
    assert [tuple(f.shape) for f in vit(pixels)] == [(2, 16, 4, 4)] * 4  # resized to 32, in patches of 8
    resnet = load_backbone(str(save_resnet(tmp_path / "resnet")), torch.device("cpu"))
    assert [tuple(f.shape) for f in resnet(pixels)] == [(2, 8, 16, 16), (2, 16, 8, 8)]
    for backbone in (vit, resnet):
        assert torch.autograd.grad(sum(f.sum() for f in backbone(pixels)), pixels)[0].any()
        assert not any(p.requires_grad for p in backbone.model.parameters())


def test_a_backbone_that_is_not_there_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DdxError, match="nowhere") as error:
        load_backbone(str(tmp_path / "nowhere"), torch.device("cpu"))
    assert error.value.hint is not None and "--backbone" in error.value.hint


@pytest.mark.parametrize("backbone", ["encoder", "vit"])
def test_a_turn_s_loss_reaches_all_of_what_it_trains_and_nothing_else(
    teacher: Teacher, backbone: str, tmp_path: Path
) -> None:
    name = str(save_vit(tmp_path / "vit")) if backbone == "vit" else None
    trainer = make_trainer(teacher, ADDConfig(backbone=name, r1_weight=1.0), method="add")
    assert_gradients_reach_their_networks(trainer, "to_k.bias", "last.bias")
    assert all(p.grad is None for p in teacher.vae().parameters())


def test_losses_are_a_discriminator_s_on_decoded_pictures_and_the_teacher_s_regression(teacher: Teacher) -> None:
    config = ADDConfig(num_steps=1, guidance_min=3.0, guidance_max=3.0, regression_weight=2.0, head_condition=False)
    method = ADD(config, teacher)
    student, heads = (method.build(spec) for spec in method.networks())
    networks = {STUDENT: student, DISCRIMINATOR: heads}
    found = method.losses(Turn(trains=(STUDENT,)), make_batch(teacher), networks)
    of_d = method.losses(Turn(trains=(DISCRIMINATOR,)), make_batch(teacher), networks).by_network[DISCRIMINATOR]

    batch, view = make_batch(teacher), method.view
    batch.random.uniform(), batch.random.uniform()
    first = view.times(1)[0]
    start = view.start(batch.random.normal(*batch.x0.shape[1:]), first)
    x = start - float(first) * view.velocity(student, start, first.expand(4), batch.condition)
    vae: Any = teacher.vae()

    def logits(latents: Tensor) -> Tensor:
        value: Tensor = heads(method.backbone(vae.decode(teacher.unscale(latents)).sample))
        return value

    torch.testing.assert_close(found.by_network[STUDENT], -logits(x).mean(1), rtol=1e-3, atol=1e-4)
    expected = (torch.relu(1 - logits(batch.x0)) + torch.relu(1 + logits(x))).mean(1)
    torch.testing.assert_close(of_d, expected, rtol=1e-3, atol=1e-4)
    t = view.t_min + (view.t_max - view.t_min) * batch.random.uniform()
    t4 = t.float()[:, None, None, None]
    x_t = (1 - t4) * x + t4 * batch.random.normal(*batch.x0.shape[1:])
    null, cond = (view.velocity(teacher.network(), x_t, t, c.expand(4)) for c in (batch.null, batch.condition))
    seen = x_t - t4 * (null + 3.0 * (cond - null))
    by_hand = 2.0 * (1 - t.float()) * (x - seen).square().flatten(1).mean(1)
    torch.testing.assert_close(found.secondary[STUDENT], by_hand, rtol=1e-3, atol=1e-4)


def test_a_regression_of_negative_weight_is_refused() -> None:
    with pytest.raises(UsageError, match="regression_weight"):
        ADDConfig(regression_weight=-1.0)
