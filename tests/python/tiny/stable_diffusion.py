from pathlib import Path
from typing import Any

from pipelines import make_stable_diffusion

VARIANTS: dict[str, dict[str, Any]] = {"v": {"prediction": "v_prediction", "zero_snr": True}}


def make(folder: Path, **settings: Any) -> Path:
    return make_stable_diffusion(folder, **settings)
