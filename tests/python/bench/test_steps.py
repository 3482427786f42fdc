"""Whole steps: with ddx they compute what they compute without, and a variant that fails is told and not fatal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ddx.bench.case import Size
from ddx.bench.step import Row, measure
from ddx.bench.steps import STEPS, SCMStep, Setting, from_flow, to_flow
from ddx.cli import main

TINY = Size(batch=2, side=4, heads=2, cross_heads=2, cross_head_dim=32, text_tokens=9, latent_channels=4)


def setting(*, ours: bool, side: int = 4) -> Setting:
    size = Size(**{**vars(TINY), "side": side})
    return Setting(size=size, device=torch.device("cpu"), ours=ours, layers=1, text_width=16)


@pytest.mark.parametrize("name", STEPS)
def test_ours_and_eager_take_the_same_steps(name: str) -> None:
    losses = []
    for ours in (False, True):
        step = STEPS[name](setting(ours=ours))
        torch.manual_seed(5)
        losses.append(torch.stack([step.run(), step.run()]))
    assert losses[0][0] != losses[0][1], "nothing was learnt"
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-4, atol=5e-5)  # Adam magnifies the last digit


def test_the_dual_tangent_is_forward_mode_through_trigflow() -> None:
    torch.manual_seed(3)
    x, dx = torch.randn(2, 2, 4, 4, 4)
    t, dt = torch.tensor([0.4, 1.1]), torch.tensor([0.2, 0.1])
    found = [SCMStep(setting(ours=ours)).tangent(x, t, dx, dt) for ours in (False, True)]
    for stock, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-4)


def test_flow_in_trigflow_is_exact_for_a_single_picture() -> None:
    # The velocity noise - data is exact for one picture x0 = 0.3; TrigFlow's is then cos t z - sin t x0.
    generator = torch.Generator().manual_seed(0)
    z, x0 = torch.randn(3, 4, 2, 2, generator=generator), 0.3
    t = torch.tensor([0.2, 0.8, 1.5])
    cos, sin = t.cos().reshape(-1, 1, 1, 1), t.sin().reshape(-1, 1, 1, 1)
    x_flow, time = to_flow(cos * x0 + sin * z, t)
    torch.testing.assert_close(from_flow(x_flow, time, z - x0), cos * z - sin * x0)


def test_a_variant_that_fails_says_why() -> None:
    row = Row(step="lcm", size="tiny", variant="ours")
    measure(row, setting(ours=True, side=0), steps=1)
    assert row.failure and row.seconds is None


def test_the_command_times_a_tiny_model_without_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    assert main.run(["bench", "step", "--method", "lcm", "--steps", "1", "--out", str(file), "--quiet"]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["eager", "ours"]
    assert all(row["seconds"] > 0 for row in rows) and rows[1]["times eager"] > 0


def test_a_resolution_that_no_token_fits_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "step", "--resolution", "500"]) == 2
    assert "multiples of 32" in capsys.readouterr().err
