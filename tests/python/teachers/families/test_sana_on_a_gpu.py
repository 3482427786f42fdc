"""A whole SANA transformer of real width on a GPU, in bfloat16: forward, backward and dual against the stock model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddx.bench.case import Size
from ddx.bench.steps import STEPS, Setting

pytestmark = pytest.mark.gpu


def losses(name: str, *, ours: bool) -> Tensor:
    setting = Setting(size=Size(batch=2, side=8), device=torch.device("cuda", 0), ours=ours, layers=2)
    step = STEPS[name](setting)
    torch.manual_seed(5)
    return torch.stack([step.run(), step.run()])


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_loss_of_the_stock_model(name: str) -> None:
    torch.testing.assert_close(losses(name, ours=True), losses(name, ours=False), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_repeats_its_bits(name: str) -> None:
    first, second = losses(name, ours=True), losses(name, ours=True)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)  # SDPA's backward adds in any order
