from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddx.methods.parts.weighting import DenoisingConfig, denoising_loss, min_snr_weight
from ddx.process import FlowProcess, PredictionKind, VPProcess

GAMMA = 5.0


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_each_kind_s_weight_is_that_of_x0(kind: PredictionKind) -> None:
    """A wrong x0, seen as an error of `kind`, must cost min(SNR, gamma) times its square whatever the kind."""
    vp, flow = VPProcess(torch.linspace(1e-4, 0.02, 1000).double()), FlowProcess()
    t = torch.linspace(0.02, 0.98, 9).double()
    process = flow if kind == "flow" else vp
    time = t if kind == "flow" else process.match(flow, t)
    t = process.flow_time(time)
    generator = torch.Generator().manual_seed(0)
    x0, noise, error = (torch.randn(9, 3, 2, 2, generator=generator).double() for _ in range(3))
    x_t = process.add_noise(x0, noise, time)
    right, wrong = (process.convert(value, x_t, time, "x0", kind) for value in (x0, x0 + 0.1 * error))
    snr = ((1 - t) / t) ** 2
    expected = snr.clamp(max=GAMMA) * (0.1 * error).square().flatten(1).mean(1)
    found = min_snr_weight(t, GAMMA, kind) * (wrong - right).square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_scales_are_pooled_and_halved() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    t, zero = torch.tensor([0.3, 0.9]).double(), torch.zeros_like(x)

    def pooled(side: int) -> torch.Tensor:
        cells = x.reshape(2, 3, side, 4 // side, side, 4 // side).mean((3, 5))
        return cells.square().mean((1, 2, 3))

    expected = (pooled(4) + pooled(2) / 2 + pooled(1) / 4) / 1.75
    found = denoising_loss(DenoisingConfig(multi_scale=True), x, zero, t)
    torch.testing.assert_close(found.loss, expected)
    weighted = denoising_loss(DenoisingConfig(multi_scale=True, denoising_weight="min-snr"), x, zero, t)
    torch.testing.assert_close(weighted.loss, min_snr_weight(t, 5.0) * expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(denoising_loss(DenoisingConfig(), x, zero, t).loss, pooled(4))


@pytest.mark.parametrize(("kind", "share"), [("x0", lambda t: t), ("eps", lambda t: 1.0 - t)])
def test_an_error_of_what_is_named_counts_the_same_at_all_times(kind: str, share: Callable[[Tensor], Tensor]) -> None:
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    error = (1.0 / share(t))[:, None, None, None].float()  # of the flow velocity, 1 of what is named
    found = denoising_loss(DenoisingConfig(denoising_weight=kind), error, torch.zeros_like(error), t)
    torch.testing.assert_close(found.loss, torch.ones(3))


def test_a_row_that_is_not_finite_is_dropped_at_every_scale() -> None:
    x = torch.ones(2, 3, 4, 4)
    x[1, 0, 0, 0] = float("nan")
    found = denoising_loss(DenoisingConfig(multi_scale=True), x, torch.zeros_like(x), torch.full((2,), 0.5).double())
    assert found.dropped.tolist() == [False, True] and found.loss.tolist() == [1.0, 0.0]
