"""The machine under a measurement: the device, its driver and clocks as they are found, and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ddx.run_record import versions

# What is asked of nvidia-smi, which only reads: nothing here sets a clock or a limit.
QUERIES = {
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
    "utilisation_percent": "utilization.gpu",
}


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to know of the machine before a number of it."""
    return {"device": device.type, **(_gpu(device) if device.type == "cuda" else _processor()), "versions": versions()}


def clocks(device: torch.device) -> dict[str, str]:
    """Return the GPU's driver, clocks, power limit and temperature now; empty without nvidia-smi or on a CPU."""
    if device.type != "cuda":
        return {}
    uuid = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERIES.values())}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run([*command, f"--id=GPU-{uuid}"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in told.stdout.strip().split(",")]
    return dict(zip(QUERIES, values, strict=True)) if len(values) == len(QUERIES) else {}


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "clocks_at_start": clocks(device),
    }


def _processor() -> dict[str, Any]:
    return {
        "name": _model() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
    }


def _model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
