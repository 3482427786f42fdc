"""A reward for what the student draws, beside the losses of the methods that look at it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ddx.errors import DdxError, UsageError
from ddx.memory.fake_run import footprint
from ddx.methods.base import FAKE, STUDENT, Batch, Turn
from ddx.methods.parts.reward import SCORER, RewardConfig, WithReward
from ddx.methods.registry import METHODS, load_method
from ddx.networks.scorers import Scorer
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distill import distill
from distilling import CAPTIONS, in_turns, make_batch, make_store, make_trainer
from pipelines import make_sana
from scorers import make_scorer

torch.set_num_threads(1)
REWARDED = [name for name, spec in METHODS.items() if issubclass(spec.config, RewardConfig)]
GUIDANCE: dict[str, Any] = {"guidance_min": 2.0, "guidance_max": 2.0}
STUDENTS = Turn(trains=(STUDENT,))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_scorer(tmp_path_factory.mktemp("scorer")))


def captioned(teacher: Teacher, step: int = 0) -> Batch:
    return dataclasses.replace(make_batch(teacher, step), captions=CAPTIONS)


def config_of(name: str, scorer: str | None, **settings: Any) -> Any:
    several = {} if name in ("tdm", "ladd", "add") else {"num_steps": 1}
    return METHODS[name].config(**GUIDANCE, **several, reward=scorer, **settings)


def test_the_methods_that_look_at_what_the_student_draws_take_a_reward() -> None:
    data_free = {"sid", "sid-lsg", "sida", "diff-instruct", "dmd", "dmd2", "decoupled-dmd", "tdm", "dde"}
    assert {*REWARDED} == {*data_free, "ladd", "add"}


@pytest.mark.parametrize(("name", "teacher"), in_turns(REWARDED), indirect=["teacher"])
def test_the_student_alone_is_rewarded_for_what_it_drew(teacher: Teacher, name: str, scorer: str) -> None:
    trainer = make_trainer(teacher, config_of(name, scorer, reward_weight=3.0), method=name)
    plain = make_trainer(teacher, config_of(name, None), method=name).method
    method: Any = trainer.method
    networks = {key: trained.module for key, trained in trainer.trained.items()}
    found = method.losses(STUDENTS, captioned(teacher), networks)
    own = plain.losses(STUDENTS, make_batch(teacher), networks)

    torch.testing.assert_close(found.by_network[STUDENT], own.by_network[STUDENT])
    assert own.generated is not None
    pixels = teacher.decode_pixels(own.generated)
    scores = method.scorer.scores(pixels, method.scorer.text_features(CAPTIONS, pixels.device))
    torch.testing.assert_close(found.tracked["reward"], scores)
    second = found.secondary[STUDENT] - own.secondary.get(STUDENT, 0.0)
    torch.testing.assert_close(second, -3.0 * scores, rtol=1e-3, atol=1e-5)

    parameters = [p for p in networks[STUDENT].parameters() if p.requires_grad]
    gradient = torch.autograd.grad(second.sum(), parameters, allow_unused=True)
    assert sum(g.square().sum() for g in gradient if g is not None) > 0.0
    frozen = [*method.onlookers().values(), teacher.network()]
    assert all(p.grad is None and not p.requires_grad for module in frozen for p in module.parameters())
    other = next(turn for turn in method.turns(0) if STUDENT not in turn.trains)
    trainer._accumulate(other, [captioned(teacher)])  # in which the scorer is not asked


def test_a_step_along_the_gradient_raises_the_score(teacher: Teacher, scorer: str) -> None:
    trainer = make_trainer(teacher, config_of("diff-instruct", scorer, reward_weight=1e4), method="diff-instruct")
    networks = {key: trained.module for key, trained in trainer.trained.items()}

    def score() -> float:
        return float(trainer.method.losses(STUDENTS, captioned(teacher), networks).tracked["reward"].mean())

    before = score()
    for _ in range(3):
        trainer._accumulate(STUDENTS, [captioned(teacher)])
        trainer._update(trainer.trained[STUDENT], 0.3)
    assert score() > before


def test_a_share_of_the_rows_is_scored_and_counts_the_more(teacher: Teacher, scorer: str) -> None:
    method: Any = load_method("diff-instruct", config_of("diff-instruct", scorer, reward_share=0.5), teacher)
    networks = {STUDENT: method.build(method.networks()[0]), FAKE: method.build(method.networks()[1])}
    seen = [method.losses(STUDENTS, captioned(teacher, step), networks) for step in range(4)]
    scored = torch.stack([losses.tracked["reward"].isfinite() for losses in seen])
    assert 0 < scored.sum() < scored.numel()
    for losses, rows in zip(seen, scored, strict=True):
        torch.testing.assert_close(losses.secondary[STUDENT][rows], -2.0 * losses.tracked["reward"][rows])
        assert not losses.secondary[STUDENT][~rows].any()


def test_a_row_that_is_not_finite_has_no_reward_and_no_gradient(teacher: Teacher, scorer: str) -> None:
    method: Any = load_method("dmd", config_of("dmd", scorer), teacher)
    x = torch.randn(4, *teacher.latent_shape())
    x[1] = float("nan")
    x.requires_grad_()
    dropped = torch.tensor([False, True, False, False])
    method.scored(x, dropped, captioned(teacher)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert not x.grad[1].any() and x.grad[0].any()


def test_it_begins_after_its_share_of_the_run_and_a_longer_run_would_move_that(teacher: Teacher, scorer: str) -> None:
    method: Any = load_method("diff-instruct", config_of("diff-instruct", scorer, reward_start=0.5), teacher)
    method.train_steps = 4
    networks = {STUDENT: method.build(method.networks()[0]), FAKE: method.build(method.networks()[1])}
    found = [method.losses(STUDENTS, captioned(teacher, step), networks) for step in (1, 2)]
    assert [STUDENT in losses.secondary for losses in found] == [False, True]
    assert method.stretched(0.25) == ("reward_start",) and method.stretched(0.75) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_weight": 2.0}, "reward_weight = 2.0: there is no reward"),
        ({"reward": "x", "reward_share": 0.0}, "reward_share = 0.0 must be above 0"),
        ({"reward": "x", "reward_start": 1.5}, "reward_start"),
        ({"reward": "x", "reward_weight": -1.0}, "reward_weight"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        METHODS["diff-instruct"].config(**settings)


def test_a_run_reads_the_drawn_captions_and_its_record_and_card_name_the_scorer(
    tmp_path: Path, scorer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read, drawn = make_sana(tmp_path / "teacher"), Scorer.text_features, list[str]()

    def recorded(self: Scorer, captions: Sequence[str], device: torch.device) -> torch.Tensor:
        drawn.extend(captions)
        return read(self, captions, device)

    monkeypatch.setattr(Scorer, "text_features", recorded)
    store = make_store(folder, tmp_path / "data", rows=8, several=True)
    config = DistillConfig(
        method="diff-instruct", teacher=str(folder), data=store, out=tmp_path / "student", train_steps=2, batch_size=4,
        loss_balance="norm", sample_every=0, log_every=1, checkpoint_every=0,
    )  # fmt: skip
    out = distill(config, config_of("diff-instruct", scorer))
    assert {*drawn} <= {*CAPTIONS, *(f"the light {text}" for text in CAPTIONS)}
    assert {text.startswith("the light") for text in drawn} == {True, False}
    record = json.loads((out / "run.json").read_text())
    assert (record["reward"], record["config"]["reward_weight"]) == (scorer, 1.0)
    assert f"| reward | `{scorer}`, weight 1 |" in (out / "README.md").read_text()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(-1.0 < line["reward"] < 1.0 for line in metrics)

    missing = dataclasses.replace(config, out=tmp_path / "other")
    with pytest.raises(DdxError, match="no scorer at"):
        distill(missing, config_of("diff-instruct", str(tmp_path / "nothing")))


def test_the_memory_of_a_run_counts_the_scorer_and_the_autoencoder(tmp_path: Path, scorer: str) -> None:
    teacher = load_teacher(make_sana(tmp_path))
    config = DistillConfig(method="diff-instruct", batch_size=2, micro_batch_size=2)

    def peak(reward: str | None) -> dict[Any, int]:
        method_config = config_of("diff-instruct", reward)
        return footprint(config, method_config, None, teacher, dtype=torch.float32, rows=2, tokens=8).peak.by_use

    found = peak(scorer)
    size = sum(
        p.numel()
        for p in load_method("dmd", config_of("dmd", scorer), load_teacher(tmp_path)).scorer.model.parameters()
    )  # type: ignore[attr-defined]
    assert found[SCORER, "weights"] >= 4 * size
    assert found["autoencoder", "weights"] > 0
    assert not any(owner == SCORER for owner, _ in peak(None))
    assert isinstance(load_method("dmd", config_of("dmd", scorer), teacher), WithReward)
