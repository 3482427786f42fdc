"""FLUX.2 klein: latents normalised by the weights, features of joint streams, and students of one guidance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ddx.errors import UsageError
from ddx.methods.dmd2 import DMD2Config
from ddx.methods.lcm import LCMConfig
from ddx.networks.guidance import EMBEDDERS, add_guidance_embedder, add_interval_embedder
from ddx.networks.lora import add_lora, low_rank_products
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from distilling import make_batch, make_trainer
from tiny import Tiny
from tiny.flux2_klein import MEAN, VARIANCE

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(Tiny("flux2-klein").make(tmp_path_factory.mktemp("klein") / "pipeline"), resolution=64)


def test_the_statistics_of_latents_are_read_from_the_weights(teacher: Teacher) -> None:
    torch.testing.assert_close(torch.tensor(teacher.shift_factor), MEAN)
    torch.testing.assert_close(torch.tensor(teacher.scaling_factor), 1.0 / (VARIANCE + 1e-4).sqrt())
    fingerprint = teacher.fingerprint()
    assert len(str(fingerprint["scaling_factor"])) < 40 and fingerprint["scaling_factor"] != fingerprint["shift_factor"]


def test_a_distilled_pipeline_says_so(teacher: Teacher, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher.folder, tmp_path / "distilled"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "is_distilled": True}))
    with pytest.raises(UsageError, match="it is a student already") as error:
        load_teacher(folder)
    assert "flux2-klein-base-4b" in str(error.value.hint)


def test_features_are_of_the_picture_alone(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(teacher, rows=slice(0, 1))
    t = torch.tensor([0.5], dtype=torch.float64)
    network: Any = teacher.network()
    blocks = [network.transformer_blocks[0], *network.single_transformer_blocks]
    monkeypatch.setattr(teacher, "feature_layers", lambda _network: blocks)
    with torch.no_grad():
        found = teacher.features(network, batch.x0, t, batch.condition)
    assert [tuple(value.shape) for value in found] == 3 * [(1, 32, 4, 4)]


def test_low_rank_layers_of_the_single_streams_are_no_lists(teacher: Teacher) -> None:
    network = add_lora(teacher.new_student_network(), teacher.lora_targets, rank=2, alpha=2.0)
    products = low_rank_products(network)
    assert {"transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.1.attn.to_out"} <= set(products)
    assert len(products) == 12 + 2 * 2


def test_a_method_with_a_usual_range_of_guidance_trains_one(teacher: Teacher) -> None:
    trainer = make_trainer(teacher, method="lcm")
    assert trainer.method.export_notes()["guidance_range"] == [4.0, 4.0]
    assert not any(hasattr(trainer.student, name) for name in EMBEDDERS)
    one = make_trainer(teacher, LCMConfig(guidance_min=3.0, guidance_max=3.0))
    assert one.method.export_notes()["guidance"] == 3.0


def test_a_range_of_guidance_and_intervals_are_refused_with_what_to_do(teacher: Teacher) -> None:
    with pytest.raises(UsageError, match="one guidance scale") as error:
        make_trainer(teacher, LCMConfig(guidance_min=2.0, guidance_max=5.0))
    assert error.value.hint == "give one scale: --guidance-min 4 --guidance-max 4"
    with pytest.raises(UsageError, match="length of their step") as error:
        make_trainer(teacher, method="shortcut")
    assert "--method dmd2" in str(error.value.hint)
    for add in (add_guidance_embedder, add_interval_embedder):
        with pytest.raises(UsageError, match="no bias"):
            add(teacher, teacher.network())


def test_a_fake_score_may_take_the_step_for_it_is_never_exported(teacher: Teacher) -> None:
    trainer = make_trainer(teacher, DMD2Config(num_steps=2), method="dmd2")
    assert hasattr(trainer.trained["fake_score"].module, "interval_embedder")


def test_a_bfloat16_network_sees_exact_times(teacher: Teacher) -> None:
    network = teacher.new_student_network(torch.bfloat16)
    seen: list[torch.Tensor] = []
    sinusoids = network.get_submodule("time_guidance_embed.time_proj")
    sinusoids.register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0]))
    batch = make_batch(teacher, rows=slice(0, 2))
    t = torch.tensor([0.901, 0.902], dtype=torch.float64)
    with torch.no_grad():
        teacher.predict(network, batch.x0, t, batch.condition)
    assert torch.equal(seen[0], 1000 * t.float())
