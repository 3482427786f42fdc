"""Two losses of one network: what the gradient of a step is, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddx.training.balance import DECAY, LossBalance
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks


def losses(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    return (layer(x) - 1.0).square().sum(), 7.0 * (layer(x) * torch.tensor([3.0, -1.0])).sum()


def gradients(layer: nn.Linear, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True))


def make(kind: str) -> tuple[nn.Linear, LossBalance, list[Tensor]]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    balance = LossBalance(list(layer.named_parameters()), DistillConfig(loss_balance=kind, balance_ratio=0.25), Ranks())
    return layer, balance, [torch.randn(4, 3) for _ in range(2)]


def step(layer: nn.Linear, balance: LossBalance, batches: list[Tensor]) -> Tensor:
    layer.zero_grad()
    for x in batches:
        first, second = losses(layer, x)
        if not balance.separates:
            (first + second).backward()
            continue
        first.backward(retain_graph=True)
        with balance.second():
            second.backward()
    balance.finish()
    return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def test_without_balance_they_are_added() -> None:
    layer, balance, batches = make("none")
    expected = sum(flat(gradients(layer, sum(losses(layer, x)))) for x in batches)
    torch.testing.assert_close(step(layer, balance, batches), expected)


def test_the_second_gradient_has_the_asked_share_of_the_first_s_norm_over_all_micro_batches() -> None:
    layer, balance, batches = make("norm")

    def both(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g1, g2 = (gradients(layer, loss) for loss in losses(layer, x))
        return flat(g1), flat(g2), torch.stack([g1[0].norm(), g2[0].norm()])  # on the last matrix

    g1, g2, norms = both(torch.cat(batches))
    torch.testing.assert_close(step(layer, balance, batches), g1 + 0.25 * norms[0] / norms[1] * g2)
    torch.testing.assert_close(balance.state()["norms"], norms)

    again = batches[0]  # the averages take one step more, however many micro-batches it has
    g1, g2, now = both(again)
    norms = DECAY * norms + (1.0 - DECAY) * now
    torch.testing.assert_close(step(layer, balance, list(again.split(1))), g1 + 0.25 * norms[0] / norms[1] * g2)
    torch.testing.assert_close(balance.state()["norms"], norms)


def test_a_gradient_that_is_not_finite_leaves_the_averages_as_they_are() -> None:
    layer, balance, batches = make("norm")
    step(layer, balance, batches)
    before = balance.state()["norms"].clone()
    assert not step(layer, balance, [batches[0] * float("inf")]).isfinite().all()
    assert torch.equal(balance.state()["norms"], before) and (before > 0.0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_opposes_the_first_is_taken_out_of_the_second(sign: float) -> None:
    layer, balance, batches = make("project")
    g1 = sum(flat(gradients(layer, losses(layer, x)[0])) for x in batches)
    g2 = sum(flat(gradients(layer, losses(layer, x)[1])) for x in batches)
    if torch.dot(g1, g2) * sign < 0:  # both cases, whatever the seed gives
        with torch.no_grad():
            layer.bias.add_(20.0)
        g1 = sum(flat(gradients(layer, losses(layer, x)[0])) for x in batches)
        g2 = sum(flat(gradients(layer, losses(layer, x)[1])) for x in batches)
    opposed = min(0.0, float(torch.dot(g1, g2))) / float(g1.square().sum())
    found = step(layer, balance, batches)
    torch.testing.assert_close(found, g1 + g2 - opposed * g1, rtol=1e-4, atol=1e-4)
    assert torch.dot(found - g1, g1) >= -1e-3 * g1.square().sum()
