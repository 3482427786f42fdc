"""Protocols of papers: what must be equal for two numbers to be comparable. A report records each of these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How many pictures of which prompts, and how they are compared.

    resize: the side that real and drawn pictures are cropped and resized to, None to compare them as they are.
    """

    num_images: int
    resize: int | None
    metrics: tuple[str, ...]
    prompts: str
    reference: str


PROTOCOLS = {
    "coco-30k": Protocol(
        num_images=30_000,
        resize=256,
        metrics=("fid", "clipscore"),
        prompts="30 000 captions of COCO's validation pictures of 2014, one a line, or its annotations as JSON",
        reference="the folder val2014",
    ),
    "coco-5k": Protocol(
        num_images=5_000,
        resize=256,
        metrics=("fid", "kid", "clipscore"),
        prompts="a caption of each of COCO's validation pictures of 2017, or its annotations as JSON",
        reference="the folder val2017",
    ),
    "mjhq-30k": Protocol(
        num_images=30_000,
        resize=None,
        metrics=("fid", "clipscore"),
        prompts="meta_data.json of MJHQ-30K",
        reference="the folder of MJHQ-30K's pictures",
    ),
}

# What of two reports must agree before their numbers are compared.
COMPARED = (
    *("protocol", "prompts_sha256", "num_images", "reference", "resize", "size", "networks", "dtype", "sampler"),
    *("seed_rule", "libraries"),
)


def differences(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """Return what of two reports' `protocol` fields differs, a sentence a field; `networks.inception.weights: …`."""
    one, other = ({name: report.get(name) for name in COMPARED} for report in (first, second))
    flat = _flat(one), _flat(other)
    return [
        f"{name}: {flat[0].get(name)} and {flat[1].get(name)}"
        for name in dict.fromkeys([*flat[0], *flat[1]])
        if flat[0].get(name) != flat[1].get(name)
    ]


def _flat(values: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Return mappings in mappings as one, with dots in the names."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found
