"""The beta tables of DDPM-type schedulers in float64, from a diffusers scheduler config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddx.errors import DdxError
from ddx.process import VPProcess


def vp_process(config: Mapping[str, Any]) -> VPProcess:
    """The process of a scheduler config (``beta_schedule``, ``beta_start``, ..., ``rescale_betas_zero_snr``)."""
    table = torch.cumprod(1.0 - _betas(config), dim=0)
    if config.get("rescale_betas_zero_snr"):
        table = _rescale_to_zero_terminal_snr(table)
    return VPProcess(alphas_cumprod=table)


def _betas(config: Mapping[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    num = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    match config.get("beta_schedule", "linear"):
        case "linear":
            return torch.linspace(start, end, num, dtype=torch.float64)
        case "scaled_linear":
            return torch.linspace(math.sqrt(start), math.sqrt(end), num, dtype=torch.float64) ** 2
        case "squaredcos_cap_v2":  # Nichol & Dhariwal 2021
            edges = torch.arange(num + 1, dtype=torch.float64) / num
            bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1.0 - bar[1:] / bar[:-1]).clamp(max=0.999)
        case other:
            raise DdxError(f"unknown beta schedule {other!r}", hint="linear, scaled_linear or squaredcos_cap_v2")


def _rescale_to_zero_terminal_snr(table: Tensor) -> Tensor:
    """Algorithm 1 of Lin et al. 2024: shift the last signal level to zero and keep the first."""
    signal = table.sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    signal = (signal - last) * first / (first - last)
    signal[-1] = 0.0
    return signal**2
