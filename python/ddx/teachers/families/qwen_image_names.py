"""Qwen-Image's checkpoints, which have diffusers' names."""

from __future__ import annotations

from ddx.teachers.parts.original_names import OriginalNames

ORIGINAL = OriginalNames(
    marks=("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"),
    others_stay=True,
    bases={"qwen-image": {"txt_in.weight": (3072, 3584)}},
)
