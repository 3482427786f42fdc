"""Where score distillation ends, by its own objective."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from ddx.bench.mixtures.gate import Modes
from ddx.bench.mixtures.mixture import Mixture, circle
from ddx.bench.mixtures.optimum import FreeModes, score_optimum
from ddx.bench.mixtures.run import make_batch, method_of, ode_modes
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.methods.parts.score_distillation import ScoreDistillation

PLAIN, GUIDED = circle(), circle(num_classes=2)


def optimum(name: str, start: Mixture, guidance: float, **settings: Any) -> Modes:
    """Of `name` on the mixture, sought from the modes of `start`."""
    torch.set_num_threads(1)
    teacher = MixtureTeacher(PLAIN if guidance == 1.0 else GUIDED, guidance=guidance)
    guided = {} if guidance == 1.0 else {"guidance_min": guidance, "guidance_max": guidance}
    method, config = method_of(name, teacher, batch_size=512, start_time=1.0, **guided, **settings)
    assert isinstance(method, ScoreDistillation)
    return score_optimum(method, partial(make_batch, teacher, config), start, steps=500)


def test_free_modes_know_the_denoiser_of_what_they_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    x, u = torch.randn(64, 2, generator=generator), torch.rand(64, generator=generator).double()
    classes = torch.randint(3, (64,), generator=generator)
    found = FreeModes(GUIDED).x0(x, 1 - u, u, classes)
    torch.testing.assert_close(found, GUIDED.x0(x, 1 - u, u, classes), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["diff-instruct", "sid", "dde", "dmd2"])
def test_without_guidance_the_optimum_is_the_mixture(name: str) -> None:
    start = Mixture(1.1 * PLAIN.means, 0.3, PLAIN.classes)
    found = optimum(name, start, 1.0, **({"gan_weight": 0.0, "num_steps": 1} if name == "dmd2" else {}))
    assert float((found.means - PLAIN.means).norm(dim=1).max()) < 0.01
    assert float((found.stds / PLAIN.std - 1).abs().max()) < 0.03


@pytest.fixture(scope="module")
def sid() -> Modes:
    return optimum("sid", GUIDED, 2.0)


def test_with_guidance_it_is_not_what_the_ode_ends_in_and_another_one_for_each_objective(sid: Modes) -> None:
    width = ode_modes(MixtureTeacher(GUIDED, guidance=2.0), num_samples=10_000).stds.mean()
    narrow = optimum("diff-instruct", GUIDED, 2.0).stds.mean()
    assert float(narrow / width) < 0.95 < 1.03 < float(sid.stds.mean() / width)


def test_a_fake_score_with_guidance_of_its_own_ends_where_one_without_does(sid: Modes) -> None:
    found = optimum("sid-lsg", GUIDED, 2.0)
    torch.testing.assert_close(found.means, sid.means)
    torch.testing.assert_close(found.stds, sid.stds)
