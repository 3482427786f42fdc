"""A discriminator beside any method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Method, Turn
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig, WithDiscriminator
from ddx.methods.parts.adversarial import DISCRIMINATOR, AdversarialConfig
from ddx.methods.parts.around import Around
from ddx.methods.registry import METHODS, load_method
from ddx.teachers.base import Teacher
from distilling import assert_gradients_reach_their_networks, in_turns, make_batch, make_trainer

torch.set_num_threads(1)
JUDGED = [name for name, spec in METHODS.items() if spec.takes_discriminator]
WITH_THEIR_OWN = {"sana-sprint", "dmd2", "ladd", "add", "sida"}
ADDED = AddedDiscriminatorConfig(gan_weight=0.3)
GUIDANCE = {"guidance_min": 2.0, "guidance_max": 2.0}


def test_every_method_has_its_own_discriminator_or_may_get_one() -> None:
    assert {*JUDGED} == {*METHODS} - WITH_THEIR_OWN
    assert all(issubclass(spec.configs[-1], AdversarialConfig) for spec in METHODS.values() if not spec.judges)


@pytest.mark.parametrize(("name", "teacher"), in_turns(JUDGED), indirect=["teacher"])
def test_what_is_judged_is_what_the_student_draws_in_one_step(teacher: Teacher, name: str) -> None:
    method = load_method(name, METHODS[name].config(**GUIDANCE), teacher, ADDED)
    assert isinstance(method, WithDiscriminator)
    method.train_steps = 4
    student = method.build(method.networks()[0])
    batch = make_batch(teacher)
    expected_random = make_batch(teacher).random
    expected_random.uniform()  # the guidance's
    noise = expected_random.normal(*batch.x0.shape[1:])
    found = method.one_step(student, batch)
    assert found.requires_grad
    torch.testing.assert_close(found.detach(), method.draw(student, [noise], batch.condition))


def test_the_student_gets_the_weighted_loss_of_the_heads_beside_its_own(teacher: Teacher) -> None:
    plain = make_trainer(teacher, METHODS["shortcut"].config(**GUIDANCE), method="shortcut").method
    trainer = make_trainer(teacher, METHODS["shortcut"].config(**GUIDANCE), method="shortcut", discriminator=ADDED)
    method: Any = trainer.method
    networks = {name: trained.module for name, trained in trainer.trained.items()} | {"target": trainer.student}
    turn = Turn(trains=(STUDENT,))
    found = method.losses(turn, make_batch(teacher), networks)

    batch = make_batch(teacher)
    own = plain.losses(turn, batch, networks)
    x = method.one_step(trainer.student, batch)  # by the numbers that come after those of the method's own loss
    s, _, fake_s = method.discriminator.noised(x, batch)
    logits = method.discriminator.judge.logits(networks[DISCRIMINATOR], teacher.network(), fake_s, s, batch.condition)
    torch.testing.assert_close(found.by_network[STUDENT], own.by_network[STUDENT])
    torch.testing.assert_close(found.tracked["adversarial"], -logits.mean(1))
    torch.testing.assert_close(found.secondary[STUDENT], -0.3 * logits.mean(1))


def test_a_regression_of_the_method_s_own_stays_beside_it(teacher: Teacher) -> None:
    config = METHODS["dmd"].config(regression_steps=1, **GUIDANCE)
    trainer = make_trainer(teacher, config, method="dmd", discriminator=ADDED)
    networks = {name: trained.module for name, trained in trainer.trained.items()}
    turn = Turn(trains=(STUDENT,))
    both = trainer.method.losses(turn, make_batch(teacher), networks)
    plain = make_trainer(teacher, config, method="dmd").method
    regression = plain.losses(turn, make_batch(teacher), networks).secondary[STUDENT]
    torch.testing.assert_close(both.secondary[STUDENT], regression + 0.3 * both.tracked["adversarial"])


@pytest.mark.parametrize("name", ["ect", "sid"])
def test_each_turn_trains_its_own_networks(teacher: Teacher, name: str) -> None:
    added = AddedDiscriminatorConfig(gan_weight=0.1, heads="fft", r1_weight=1.0)
    # attention over keys is blind to one constant added to all of them, hinge at the start to one on all logits
    trainer = make_trainer(teacher, METHODS[name].config(**GUIDANCE), method=name, discriminator=added)
    assert_gradients_reach_their_networks(trainer, "to_k.bias", "last.bias")


def test_all_that_it_adds_nothing_to_is_asked_of_the_method(teacher: Teacher) -> None:
    for_methods = {"config", "defaults", "new_network", "rows_to_pass", "stage_at"}
    method = load_method("reflow", METHODS["reflow"].config(pairs="stored", rounds=2), teacher, ADDED)
    asked = {*vars(Around), *vars(method)}
    assert {name for name in vars(Method) if not name.startswith("_")} - for_methods <= asked
    method.train_steps, method.shares_backbone = 8, True
    assert isinstance(method, WithDiscriminator) and method.method.train_steps == 8 and method.method.shares_backbone
    assert method.reads_pairs and method.renewed(4) == ("before",) and method.sampler == "ode"


def test_heads_without_a_discriminator_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="heads = fft: there is no discriminator") as refused:
        AddedDiscriminatorConfig(heads="fft")
    assert "--gan-weight" in str(refused.value.hint)
