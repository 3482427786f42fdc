from pathlib import Path

from pipelines import make_stable_diffusion


def make(folder: Path) -> Path:
    return make_stable_diffusion(folder)
