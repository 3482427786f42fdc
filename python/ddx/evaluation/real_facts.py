"""What a report says beside its numbers: the protocol, differences in pairs, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.measure_config import MeasureConfig
from ddx.evaluation.measures import FEW
from ddx.evaluation.prompt_lists import prompts_hash
from ddx.evaluation.protocols import PROTOCOLS
from ddx.evaluation.real_rows import Row
from ddx.evaluation.reference import Reference
from ddx.metrics.bootstrap import paired_difference

if TYPE_CHECKING:
    from ddx.networks.picture_networks import PictureNetwork

LIBRARIES = ("torch-fidelity", "torchmetrics", "torchvision", "transformers", "pillow", "numpy")
SEED_RULE = "picture i has seed {seed} * 1 000 000 + i, from a CPU generator"


def protocol_of(
    config: EvaluateConfig,
    measure: MeasureConfig,
    prompts: tuple[str, ...] | None,
    reference: Reference | None,
    networks: Mapping[str, PictureNetwork],
    rows: Sequence[Row],
) -> dict[str, Any]:
    """Return all that must be equal for another report's numbers to be comparable."""
    drawn = next((row.drawn.facts for row in rows if row.drawn), {})
    size = drawn.get("size")
    asked = prompts or next((row.prompts for row in rows if row.prompts), None)
    return {
        "protocol": measure.protocol,
        "prompts": None if config.prompts is None else str(config.prompts),
        "prompts_sha256": prompts_hash(asked) if asked else None,
        "num_images": max((row.count for row in rows), default=0),
        "reference": None if reference is None else reference.name,
        "reference_pictures": None if reference is None else reference.count,
        "reference_skipped": {} if reference is None else dict(reference.skipped),
        "resize": measure.side,
        "size": size,
        "dtype": drawn.get("dtype"),
        "sampler": config.sampler,
        "seed_rule": None if measure.pictures else SEED_RULE.format(seed=config.seed),
        "networks": {name: network.facts for name, network in networks.items()},
        "libraries": _libraries(),
    }


def paired_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how each row differs from the first in what is a mean over pictures, in pairs of a prompt and a seed."""
    measured = [row for row in rows if row.error is None and row.kept is not None]
    found = []
    for row in measured[1:]:
        first = measured[0]
        if first.prompts != row.prompts:
            continue
        assert first.kept is not None and row.kept is not None
        _, here, there = np.intersect1d(first.kept, row.kept, return_indices=True)
        for name, values in row.values.items():
            apart = paired_difference(first.values[name][here], values[there])
            found.append(
                {
                    "metric": name,
                    "first": first.title,
                    "second": row.title,
                    "difference": apart.value,
                    "low": apart.low,
                    "high": apart.high,
                }
            )
    return found


def notes_of(
    rows: Sequence[Row], names: Sequence[str], reference: Reference | None, measure: MeasureConfig
) -> tuple[str, ...]:
    """Return what a reader of the numbers must know, a sentence or two each."""
    notes = []
    few = [row for row in rows if row.error is None and row.count < FEW]
    if few and "fid" in names:
        notes.append(
            f"FID of {few[0].count} pictures is biased upwards: under {FEW} it compares with nothing but the same "
            "number. FID∞ is its extrapolation to endless pictures."
        )
    if reference is not None and reference.count is not None and reference.count < FEW and "fid" in names:
        notes.append(f"The reference has {reference.count} pictures alone, which FID∞ does not make up for.")
    if {"precision", "recall", "density", "coverage"} & set(names):
        notes.append("Precision and recall (k = 3), density and coverage (k = 5) use as many pictures on both sides.")
    for row in rows:
        if row.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in row.skipped.items())
            notes.append(f"{row.title}: pictures left out: {reasons}.")
    if reference is not None and reference.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in reference.skipped.items())
        notes.append(f"Reference pictures left out: {reasons}.")
    if measure.protocol and any(
        row.error is None and row.count != PROTOCOLS[measure.protocol].num_images for row in rows
    ):
        notes.append(f"{measure.protocol} is of {PROTOCOLS[measure.protocol].num_images} pictures: this is not it.")
    return tuple(notes)


def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
