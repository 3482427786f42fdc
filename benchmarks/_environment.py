"""The machine that a result was taken on, and where results go."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from ddx.run_record import versions, write_json

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, accelerator and versions."""
    import torch

    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "memory_gib": round(gib, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


def write_result(name: str, result: dict[str, Any], environment: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write one benchmark's result with its machine and date; return the file."""
    content = {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "machine": environment, "result": result}
    return write_json(folder / f"{name}.json", content)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
