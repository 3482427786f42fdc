"""Compiled blocks and CUDA graphs: when they are on, and that a recorded pass would serve another step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddx.device import Sends, send
from ddx.methods.base import STUDENT, Batch
from ddx.methods.parts.random_numbers import KeyedNumbers, RandomNumbers
from ddx.methods.registry import METHODS, load_method, method_spec
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.batches import TEXT_STEP, micro_batches
from ddx.training.distributed import Ranks
from ddx.training.faster import recomputation, what_is_on, why_not_compiled
from ddx.training.graphs import copy_batch, signature, standing, why_no_graphs
from ddx.training.trainer import Trainer
from distilling import make_batch, make_trainer

GPU = torch.device("cuda")
RECORDED = ("lcm", "scm", "sana-sprint", "sid", "sid-lsg", "sida")
LATE = 3900  # of 4000 steps: no warm-up is left


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return load_teacher(teacher_folder)


def at(teacher: Teacher, step: int, seed: int = 0, device: torch.device | str = "cpu") -> Batch:
    """A batch of a step, with numbers by the counter as on a GPU."""
    batch = make_batch(teacher, step, seed=seed)
    numbers = RandomNumbers(seed, step, range(4), device, by_counter=True)
    return dataclasses.replace(batch, random=numbers, step=step, progress=step / 4000, x0=batch.x0 + 0.01 * step)


def test_the_methods_that_can_be_recorded_are_known(teacher: Teacher) -> None:
    found = []
    for name in METHODS:
        spec = method_spec(name)
        if load_method(name, spec.config(), teacher).host_numbers(0, 0.0) is not None:
            found.append(name)
    assert set(found) == set(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_a_pass_of_one_step_serves_another_with_equal_host_numbers(teacher: Teacher, name: str) -> None:
    trainer = make_trainer(teacher, method=name, train_steps=4000)
    method, networks = trainer.method, trainer._modules()
    assert method.host_numbers(LATE, LATE / 4000) == method.host_numbers(LATE + 1, (LATE + 1) / 4000)
    for turn in dict.fromkeys(method.turns(LATE)):
        for key, trained in trainer.trained.items():
            trained.activate(key in turn.trains)
        place = standing(at(teacher, LATE))  # it keeps the step of this batch, as a graph does
        later = at(teacher, LATE + 1)
        assert signature(later)[0] == signature(place)[0]  # type: ignore[index]
        expected = method.losses(turn, at(teacher, LATE + 1), networks).detached()
        copy_batch(later, place)
        found = method.losses(turn, place, networks).detached()
        for part in ("by_network", "secondary", "dropped"):
            for key, value in getattr(expected, part).items():
                assert torch.equal(getattr(found, part)[key], value), (turn, part, key)


def test_another_step_has_other_host_numbers_where_it_matters(teacher: Teacher) -> None:
    growing = method_spec("lcm").config(solver_steps=40, solver_steps_start=10)
    method = load_method("lcm", growing, teacher)
    assert method.host_numbers(0, 0.0) != method.host_numbers(0, 0.99)
    method = load_method("scm", method_spec("scm").config(tangent_warmup=100.0), teacher)
    assert len({method.host_numbers(step, step / 4000) for step in (0, 50, 100, 200)}) == 3
    method = load_method("sid", method_spec("sid").config(alpha_end=1.2), teacher)
    assert method.host_numbers(0, 0.1) != method.host_numbers(0, 0.2)


def test_graphs_are_off_with_a_reason(teacher: Teacher) -> None:
    trainer = make_trainer(teacher)
    config, method = trainer.config, trainer.method
    assert why_no_graphs(config, method, GPU, 1) is None
    reasons = [
        why_no_graphs(config, method, torch.device("cpu"), 1),
        why_no_graphs(config, method, GPU, 2),
        why_no_graphs(dataclasses.replace(config, dtype="fp16"), method, GPU, 1),
        why_no_graphs(dataclasses.replace(config, loss_balance="norm"), method, GPU, 1),
        why_no_graphs(config, load_method("twinflow", method_spec("twinflow").config(), teacher), GPU, 1),
    ]
    assert None not in reasons and len(set(reasons)) == 5
    assert what_is_on(config, method, GPU, 1) == {}
    asked = dataclasses.replace(config, cuda_graphs=True, compile=True)
    assert what_is_on(asked, method, torch.device("cpu"), 1)["cuda_graphs"] == "off: the run is not on a GPU"
    assert make_trainer(teacher, cuda_graphs=True).graphs is None
    dual = load_method("scm", method_spec("scm").config(), teacher)
    assert "forward-mode" in str(why_not_compiled(dual, GPU)) and why_not_compiled(method, GPU) is None


def test_what_is_sent_again_is_the_first_copy_and_what_differs_is_found() -> None:
    sends, given = Sends(), []
    for values in ((1.0, 2.0), (1.0, 2.0), (1.0, 3.0)):
        with sends.of_a_run():
            given.append([send(torch.tensor(value), "meta") for value in values])
        assert sends.differs == (values[1] == 3.0)
    assert given[1][0] is given[0][0] and given[1][1] is given[0][1]
    assert given[2][0] is given[0][0] and given[2][1] is not given[0][1]
    short = Sends()
    for count in (2, 1):
        with short.of_a_run():
            for _ in range(count):
                send(torch.ones(1), "meta")
    assert short.differs


def test_rows_are_not_parted_by_keys_on_the_device() -> None:
    numbers = KeyedNumbers(torch.tensor([5, 7]))
    assert len(numbers) == 2 and numbers.uniform().shape == (2,) and numbers.draws == 1
    with pytest.raises(RuntimeError, match="on the host"):
        numbers.pick(0.5)


def test_random_state_is_kept_only_where_something_is_dropped() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.0))
    again = recomputation(layer)
    assert again is not None
    x = torch.ones(1, 2, requires_grad=True)
    assert torch.equal(again(layer, x), layer(x))
    layer.append(torch.nn.Dropout(0.1))
    assert recomputation(layer) is None


@pytest.mark.slow  # the compiler takes a minute
def test_compiled_blocks_train_as_plain_ones(teacher: Teacher) -> None:
    plain, ours = make_trainer(teacher), make_trainer(teacher, compile=True)
    blocks = list(ours.student.get_submodule("transformer_blocks").children())
    assert all(block._compiled_call_impl is not None for block in blocks)
    try:
        for trainer in (plain, ours):
            trainer.step(0, [make_batch(teacher)])
        theirs, found = (trainer.trained[STUDENT].optimizer_tensors() for trainer in (plain, ours))
        for name, value in theirs.items():  # the moments: the step itself is a sign where gradients are tiny
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)
    finally:
        torch._dynamo.reset()
        for block in teacher.network().get_submodule("transformer_blocks").children():
            block._compiled_call_impl = None


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_recorded_steps_are_those_of_eager_ones(teacher_folder: Path, name: str, checkpointing: bool) -> None:
    host, device = load_teacher(teacher_folder), load_teacher(teacher_folder, device="cuda", dtype="bf16")
    said: list[str] = []

    def trained(graphs: bool) -> tuple[Trainer, dict[str, Tensor]]:
        made = make_trainer(
            device,
            method=name,
            ranks=Ranks(device=torch.device("cuda", 0)),
            cuda_graphs=graphs,
            gradient_checkpointing=checkpointing,
            train_steps=4000,
        )
        trainer = Trainer(made.method, made.config, made.ranks, torch.bfloat16, say=said.append)
        null = host.null_condition().to("cuda", torch.float32)
        for step in range(LATE, LATE + 6):
            batch = at(host, step, device="cuda")
            batch = dataclasses.replace(
                batch, x0=batch.x0.cuda(), condition=batch.condition.to("cuda", torch.float32), null=null
            )
            trainer.step(step, [batch])
        return trainer, {n: v.clone() for n, v in trainer.snapshot().tensors[STUDENT].items()}

    (plain, theirs), (recorded, ours) = trained(False), trained(True)
    assert plain.graphs is None and recorded.graphs is not None and said == []
    assert any(found.graph is not None for found in recorded.graphs._known.values())
    assert all(torch.equal(ours[n], v) for n, v in theirs.items())


@pytest.mark.parametrize("asked", [True, False])
def test_texts_are_padded_to_few_lengths_where_shapes_must_repeat(teacher: Teacher, asked: bool) -> None:
    trainer, batch = make_trainer(teacher), make_batch(teacher)
    config = dataclasses.replace(trainer.config, cuda_graphs=asked)
    run: Any = SimpleNamespace(
        **{"ranks": Ranks(), "rows_per_rank": 4, "config": config, "teacher": teacher, "method": trainer.method},
        **{"sizes": None, "null": batch.null, "captions": None},
    )
    (made,) = micro_batches(run, SimpleNamespace(latents=batch.x0, condition=batch.condition), 0)
    length = batch.condition.tokens.shape[1]
    assert length < TEXT_STEP
    assert made.condition.tokens.shape[1] == (TEXT_STEP if asked else length)
    assert made.condition.row_lengths() == batch.condition.row_lengths()
