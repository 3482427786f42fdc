"""The forward processes: conversions between prediction kinds, solver steps, and matching by signal-to-noise."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch

from ddx.process import FlowProcess, PredictionKind, Process, VPProcess
from ddx.teachers.parts.betas import vp_process

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS: tuple[PredictionKind, ...] = get_args(PredictionKind)


def stable_diffusion() -> VPProcess:
    return vp_process(STABLE_DIFFUSION)


def zero_snr() -> VPProcess:
    return vp_process({**STABLE_DIFFUSION, "rescale_betas_zero_snr": True})


def times(process: Process) -> torch.Tensor:
    return torch.linspace(0.02, 0.98, 9, dtype=torch.float64) * process.t_max


def definition(process: Process, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}


@pytest.mark.parametrize("make", [FlowProcess, stable_diffusion, zero_snr])
@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
def test_every_kind_converts_to_every_other(make, source: PredictionKind, target: PredictionKind) -> None:
    process = make()
    t = times(process)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(t), 5, dtype=torch.float64, generator=generator)
    x_t = process.add_noise(x0, eps, t)
    kinds = definition(process, x0, eps, t)
    converted = process.convert(kinds[source], x_t, t, source, target)
    torch.testing.assert_close(converted, kinds[target], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [FlowProcess, stable_diffusion, zero_snr])
@pytest.mark.parametrize("kind", KINDS)
def test_a_solver_step_with_the_true_prediction_lands_on_the_same_line(make, kind: PredictionKind) -> None:
    process = make()
    t = times(process)
    r = t * 0.3
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, len(t), 5, dtype=torch.float64, generator=generator)
    prediction = definition(process, x0, eps, t)[kind]
    stepped = process.solver_step(prediction, process.add_noise(x0, eps, t), t, r, kind)
    torch.testing.assert_close(stepped, process.add_noise(x0, eps, r), rtol=0, atol=1e-12)


def test_the_flow_step_is_euler() -> None:
    t, r = torch.tensor([0.9, 0.4], dtype=torch.float64), torch.tensor([0.7, 0.0], dtype=torch.float64)
    x, v = torch.randn(2, 2, 3, dtype=torch.float64)
    stepped = FlowProcess().solver_step(v, x, t, r, "flow")
    torch.testing.assert_close(stepped, x + (r - t)[:, None] * v, rtol=0, atol=1e-14)


def test_stable_diffusion_steps_match_the_published_flow_times() -> None:
    steps = torch.tensor([499, 625, 749, 999], dtype=torch.float64)
    matched = FlowProcess().match(stable_diffusion(), steps)
    assert [round(value, 3) for value in matched.tolist()] == [0.617, 0.714, 0.803, 0.936]
    torch.testing.assert_close(stable_diffusion().match(FlowProcess(), matched), steps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [FlowProcess, stable_diffusion, zero_snr])
def test_time_and_angle_are_inverse_and_the_vp_table_is_hit_exactly(make) -> None:
    process = make()
    t = torch.linspace(0, process.t_max, 97, dtype=torch.float64)
    torch.testing.assert_close(process.time_at(process.angle(t)), t, rtol=0, atol=1e-9 * process.t_max)
    assert (process.angle(t).diff() > 0).all()
    if isinstance(process, VPProcess):
        steps = torch.arange(process.num_train_timesteps, dtype=torch.float64)
        torch.testing.assert_close(process.alpha(steps) ** 2, process.alphas_cumprod, rtol=0, atol=1e-15)
        torch.testing.assert_close(
            process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-15
        )


def test_the_table_equals_the_diffusers_scheduler_in_float32() -> None:
    from diffusers import DDIMScheduler

    for process, rescale in ((stable_diffusion(), False), (zero_snr(), True)):
        scheduler = DDIMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=rescale)
        # diffusers builds the table in float32: a thousand products, each rounded
        torch.testing.assert_close(process.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=2e-5, atol=1e-7)


def test_at_zero_terminal_snr_v_works_and_eps_is_refused() -> None:
    process = zero_snr()
    last = torch.tensor([process.t_max], dtype=torch.float64)
    assert process.zero_terminal_snr and process.alpha(last).item() == 0.0
    x0, eps = torch.randn(2, 1, 4, dtype=torch.float64)
    x_t = process.add_noise(x0, eps, last)
    assert torch.equal(x_t, eps)
    torch.testing.assert_close(process.convert(-x0, x_t, last, "v", "x0"), x0)
    torch.testing.assert_close(process.convert(x0, x_t, last, "x0", "flow"), eps - x0)
    with pytest.raises(ValueError, match="zero SNR"):
        process.convert(eps, x_t, last, "eps", "x0")


def test_pure_ends_of_the_flow() -> None:
    process = FlowProcess()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    x0, eps = torch.randn(2, 1, 4, dtype=torch.float64)
    assert torch.equal(process.convert(eps - x0, eps, one, "flow", "x0"), eps - (eps - x0))
    assert torch.equal(process.convert(eps - x0, x0, zero, "flow", "x0"), x0)
    with pytest.raises(ValueError, match="zero SNR"):
        process.convert(eps, eps, one, "eps", "x0")
    with pytest.raises(ValueError, match="no noise"):
        process.convert(x0, x0, zero, "x0", "eps")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_keep_their_dtype_and_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    process = FlowProcess()
    t = torch.tensor([0.3, 0.999], dtype=torch.float64)
    x, v = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    x0 = process.convert(v, x, t, "flow", "x0")
    assert x0.dtype == dtype
    exact = x.double() - t[:, None, None, None] * v.double()
    assert (x0.double() - exact).abs().max() <= 1.01 * torch.finfo(dtype).eps * exact.abs().max()


def test_the_shift_multiplies_the_snr() -> None:
    process, t = FlowProcess(), torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    shifted = process.shift(t, 3.0)
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    torch.testing.assert_close((process.alpha(shifted) / process.sigma(shifted)) ** 2, snr / 9, rtol=1e-12, atol=0)


def test_a_table_that_does_not_fall_is_refused() -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        VPProcess(alphas_cumprod=[0.5, 0.6])
    with pytest.raises(ValueError, match="either betas or"):
        VPProcess()
