"""SiDA: what its fake score judges, what reaches whom, and its warm-up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, softplus

from ddx.errors import UsageError
from ddx.methods.base import FAKE, STUDENT
from ddx.methods.registry import method_spec
from ddx.teachers.base import Teacher
from ddx.teachers.features import as_map
from distilling import make_batch
from method_runs import FAKES_TURN, STUDENTS_TURN, make_method, make_run

torch.set_num_threads(1)
ONE_STEP = {"num_steps": 1, "guidance_min": 1.0, "guidance_max": 1.0}


def logits_by_hand(teacher: Teacher, network: Any, x_t: Tensor, t: Tensor, batch: Any, method: Any) -> Tensor:
    """By a pass of its own, hooked by hand: of SANA's last block over the picture, of a UNet's middle over channels."""
    kept: list[Tensor] = []
    layer = network.mid_block if hasattr(network, "mid_block") else network.transformer_blocks[-1]
    handle = layer.register_forward_hook(lambda _m, _i, output: kept.append(output))
    method.view.velocity(network, x_t, t, batch.condition)
    handle.remove()
    if hasattr(network, "mid_block"):
        return kept[0].mean(1).flatten(1).clamp(-10.0, 10.0)
    tokens = as_map(kept[0], x_t).flatten(2).transpose(1, 2)
    return layer_norm(tokens, tokens.shape[2:]).mean(1).clamp(-10.0, 10.0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_both_turns_judge_by_the_fake_score_s_own_features_of_the_caption(teacher: Teacher, guidance: float) -> None:
    settings = {**ONE_STEP, "guidance_min": guidance, "guidance_max": guidance, "gan_weight": 0.3}
    run = make_run(teacher, "sida", fake_gan_weight=0.7, **settings)
    plain = make_run(teacher, "sida", fake_gan_weight=0.0, **settings)
    fake, method = run.networks[FAKE], run.method
    batch = make_batch(teacher)
    random, shape = make_batch(teacher).random, batch.x0.shape[1:]
    random.uniform(), random.normal(*shape), random.uniform()
    t = method.times_at(random.uniform())  # type: ignore[attr-defined]
    noise, x = (
        random.normal(*shape),
        method.draw(run.student, [make_noise(teacher)], batch.condition, guidance=guidance),
    )
    t4 = t[:, None, None, None].float()
    x_t, real_t = ((1 - t4) * value + t4 * noise for value in (x, batch.x0))
    of_fake, of_real = (logits_by_hand(teacher, fake, value, t, batch, method) for value in (x_t, real_t))

    found = run.losses(batch)
    expected = 0.3 * (1.0 - t.float()) * softplus(-of_fake).mean(1)
    torch.testing.assert_close(found.secondary[STUDENT].float(), expected, rtol=1e-4, atol=1e-5)
    judged = (softplus(-of_real) + softplus(of_fake)).mean(1) / 2
    added = (
        run.losses(make_batch(teacher), FAKE).by_network[FAKE]
        - plain.losses(make_batch(teacher), FAKE).by_network[FAKE]
    )
    torch.testing.assert_close(added, 0.7 * judged, rtol=1e-4, atol=1e-4)


def make_noise(teacher: Teacher) -> Tensor:
    random = make_batch(teacher).random
    random.uniform()
    return random.normal(*teacher.latent_shape())


def test_the_weight_one_minus_t_stands_for_that_by_distance(teacher: Teacher) -> None:
    by_distance, by_time = (
        make_run(teacher, "sid", score_weight=kind, guidance_min=1.0, guidance_max=1.0)
        for kind in ("distance", "one-minus-t")
    )
    losses = [run.losses(make_batch(teacher)).by_network[STUDENT] for run in (by_distance, by_time)]
    batch = make_batch(teacher)
    method: Any = by_time.method
    made = method.generate(by_time.student, batch, method.draw_guidance(batch))
    seen = method.look(made.x, batch, by_time.networks[FAKE], 1.0)
    w = (seen.y_teacher - made.x).abs().flatten(1).mean(1)
    torch.testing.assert_close(losses[1], losses[0] * w * (1.0 - seen.t).float(), rtol=1e-4, atol=1e-7)


def test_it_begins_with_the_fake_score_alone_then_without_the_adversarial_loss(teacher: Teacher) -> None:
    method = make_method("sida", teacher, warmup_share=0.2, **ONE_STEP)
    method.train_steps = 100
    assert [turn.trains for step in (0, 9, 10) for turn in method.turns(step)] == [
        (FAKE,),
        (FAKE,),
        (FAKE,),
        (STUDENT,),
    ]
    networks = {name: teacher.new_student_network() for name in (STUDENT, FAKE)}
    for step, judged in ((19, False), (20, True)):
        losses = method.losses(STUDENTS_TURN, make_batch(teacher, step), networks)
        assert bool(losses.secondary) is judged
    assert method.stretched(0.1) == ("warmup_share",) and method.stretched(0.3) == ()
    assert method.losses(FAKES_TURN, make_batch(teacher), networks).tracked["discriminator"].shape == (4,)


@pytest.mark.parametrize("settings", [{"score_gradients": "none"}, {"stopped_share": 0.1}, {"gan_weight": -1.0}])
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))) as error:
        method_spec("sida").config(**settings)
    assert error.value.hint
