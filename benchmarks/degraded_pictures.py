"""Photographs blurred, compressed and made noisy in growing strength: does each metric move the right way?

The reference and the scored pictures are different crops of scikit-image's photographs. Without `--inception` the
network has random weights at its real architecture: the direction then says that arithmetic, resize and network hang
together, and nothing about people.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "python"))

import click
import numpy as np
import skimage.data
import torch
from _environment import machine, write_result
from _peers import need
from PIL import Image, ImageFilter

from ddx.metrics.frechet import distance_to_rows, fit
from ddx.metrics.kernel_distance import polynomial_mmd
from ddx.metrics.precision_recall import manifolds
from ddx.networks.inception import load_inception
from picture_weights import make_inception

SIDE, PER_PHOTOGRAPH = 128, 3
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina")
STRENGTHS: dict[str, tuple[float, ...]] = {"blur": (0.7, 1.5, 3.0), "jpeg": (40, 15, 4), "noise": (8, 20, 50)}
LOWER = ("fid", "kid")  # the others are to fall as pictures get worse


def main_metrics(reference: np.ndarray[Any, Any], drawn: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the metrics of features."""
    three, five = (manifolds(reference, drawn, k).estimates(resamples=0) for k in (3, 5))
    return {
        "fid": distance_to_rows(fit(reference), drawn),
        "kid": polynomial_mmd(reference, drawn),
        "precision": three["precision"].value,
        "density": five["density"].value,
        "coverage": five["coverage"].value,
    }


def crops() -> tuple[list[Image.Image], list[Image.Image]]:
    """Return two sets of crops of the same photographs."""
    random = np.random.RandomState(0)
    sets: tuple[list[Image.Image], list[Image.Image]] = ([], [])
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        scale = 400 / min(photograph.size)
        photograph = photograph.resize((round(photograph.width * scale), round(photograph.height * scale)))
        for number in range(2 * PER_PHOTOGRAPH):
            left, top = random.randint(photograph.width - SIDE), random.randint(photograph.height - SIDE)
            sets[number % 2].append(photograph.crop((left, top, left + SIDE, top + SIDE)))
    return sets


def degrade(picture: Image.Image, kind: str, strength: float, seed: int) -> Image.Image:
    """Return the picture made worse: blurred by a radius, as a JPEG of a quality, or with noise of a deviation."""
    if kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(strength))
    if kind == "jpeg":
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(strength))
        return Image.open(buffer).convert("RGB")
    noise = np.random.RandomState(seed).standard_normal((SIDE, SIDE, 3)) * strength
    return Image.fromarray((np.asarray(picture) + noise).round().clip(0, 255).astype(np.uint8))


def right_way(values: list[float], *, lower: bool) -> bool:
    """Return whether each is no better than the one before, and the last is worse than the first."""
    signs = values if lower else [-value for value in values]
    return all(later >= before for before, later in pairwise(signs)) and signs[-1] > signs[0]


@click.command()
@click.option("--inception", type=click.Path(path_type=Path), help="Weights of Inception.  [default: random ones]")
def main(inception: Path | None, write: Callable[..., Any] = write_result) -> None:
    """Measure, print and write the result."""
    need("torch_fidelity")
    environment = machine()
    with tempfile.TemporaryDirectory() as folder:
        file = inception or make_inception(Path(folder) / "inception.pth")
        network = load_inception(file, torch.device("cpu"))

    def features(pictures: list[Image.Image]) -> np.ndarray[Any, Any]:
        rows = []
        for start in range(0, len(pictures), 8):
            batch = torch.stack([network.prepare(np.asarray(picture)) for picture in pictures[start : start + 8]])
            rows.append(network(batch)["features"].numpy())
        return np.concatenate(rows)

    real, others = crops()
    reference = features(real)
    clean = main_metrics(reference, features(others))
    table: dict[str, list[dict[str, float]]] = {}
    verdicts: dict[str, dict[str, bool]] = {}
    for kind, strengths in STRENGTHS.items():
        found = [clean]
        for strength in strengths:
            made = [degrade(picture, kind, strength, seed) for seed, picture in enumerate(others)]
            found.append(main_metrics(reference, features(made)))
        table[kind] = [
            {"strength": strength, **values} for strength, values in zip((0.0, *strengths), found, strict=True)
        ]
        verdicts[kind] = {name: right_way([one[name] for one in found], lower=name in LOWER) for name in clean}
        for row in table[kind]:
            print(kind, {name: float(f"{value:.4g}") for name, value in row.items()})
        print(kind, "moves the right way:", ", ".join(name for name, right in verdicts[kind].items() if right))
    result = {
        "weights": network.identity if inception else "random, of seed 0",
        "pictures": len(others),
        "table": table,
        "right way": verdicts,
    }
    write("degraded_pictures", result, environment)


if __name__ == "__main__":
    main()
