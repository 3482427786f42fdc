"""Any process seen as flow matching: the same points, the same velocities, and a derivative that is exact."""

from __future__ import annotations

import pytest
import torch

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.teacher import PROCESSES, MixtureTeacher
from ddx.methods.parts.flow_view import FlowView

MIXTURE = circle()


def view(process: str) -> FlowView:
    return FlowView(MixtureTeacher(MIXTURE, process))


def points(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0.1, 0.9, count).double()
    x0 = MIXTURE.draw(torch.full((count,), MIXTURE.num_classes), generator).double()[:, :, None, None]
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * noise, t


@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_has_the_velocity_of_the_flow(process: str) -> None:
    x, t = points()
    found, flow = view(process), view("flow")
    condition = found.teacher.null_condition().expand(len(x))
    ours = found.velocity(found.teacher.network(), x, t, condition)
    theirs = flow.velocity(flow.teacher.network(), x, t, condition)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES)
def test_positions_and_times_are_inverse_and_steps_are_even(process: str) -> None:
    seen = view(process)
    times = seen.times(4)
    assert times[-1] == 0.0 and bool((times.diff() < 0).all())
    assert float(times[0]) == pytest.approx(seen.t_max, abs=1e-9)
    positions = seen.position(times)
    torch.testing.assert_close(positions, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]).double(), rtol=0, atol=2e-3)
    torch.testing.assert_close(seen.time_of_position(positions), times, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_start_is_unit_noise_as_the_family_s_pipelines_feed_it(process: str) -> None:
    seen, noise = view(process), torch.randn(2, 2, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    time = seen.process.time_at(torch.atan2(torch.tensor(seen.t_max), torch.tensor(1 - seen.t_max)).double())
    alpha, sigma = seen.process.alpha(time), seen.process.sigma(time)
    scale = 1.0 if process == "flow" else (alpha**2 + sigma**2).sqrt()  # EDM: about 80; VP: 1
    torch.testing.assert_close(seen.start(noise, seen.t_max) * (alpha + sigma), scale * noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_derivative_along_a_direction_is_that_of_a_difference(process: str) -> None:
    seen = view(process)
    x, t = points(16)
    t = t + 1e-5  # off the entries of a table, where its slope changes
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    dt = torch.linspace(-1.0, 1.0, len(t)).double()
    condition = seen.teacher.null_condition().expand(len(x))
    network = seen.teacher.new_student_network().double().eval()
    value, tangent = seen.velocity_dual(network, x, dx, t, dt, condition)
    step = 1e-6

    def at(share: float) -> torch.Tensor:
        with torch.no_grad():
            return seen.velocity(network, x + share * dx, t + share * dt, condition).double()

    torch.testing.assert_close(value.double(), at(0.0), rtol=1e-5, atol=1e-5)
    expected = (at(step) - at(-step)) / (2 * step)
    assert float((tangent.double() - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("first", [0.714, 0.7143, 0.8, 0.95, None])
def test_timesteps_are_those_that_a_pipeline_is_given(first: float | None, steps: int) -> None:
    seen = view("vp-eps")
    times = seen.times(steps, first)[:-1]
    found = seen.process.time_at(torch.atan2(times, 1 - times))
    whole = round(float(seen.process.time_at(torch.atan2(*_pair(first or seen.t_max)))))
    expected = [round((whole + 1) * (steps - step) / steps - 1) for step in range(steps)]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_times_of_one_s_own_are_whole_timesteps_of_vp_and_end_at_the_picture() -> None:
    assert view("flow").sampled_times((1.0, 0.783)).tolist() == [1.0, 0.783, 0.0]
    seen = view("vp-eps")
    found = seen.sampled_times((1.0, 0.783))
    whole = torch.tensor([*seen.timesteps((1.0, 0.783)), 0.0]).double()
    assert whole[0] == seen.process.t_max and found[2] == 0.0
    torch.testing.assert_close(found[:2], seen.process.flow_time(whole[:2]), rtol=0, atol=0)
    assert float(found[1]) == pytest.approx(0.783, abs=1e-3)


def _pair(t: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(t, dtype=torch.float64), torch.tensor(1 - t, dtype=torch.float64)
