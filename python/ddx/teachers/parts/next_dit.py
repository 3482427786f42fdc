"""Where the layers of diffusers' Lumina 2 and Z-Image are in the authors' checkpoints, which ComfyUI's networks follow.

Both are descendants of one network, Next-DiT (Zhuo et al. 2024).
"""

from __future__ import annotations

_IN_A_BLOCK = {
    "to_q": ("attention.qkv", 0),
    "to_k": ("attention.qkv", 1),
    "to_v": ("attention.qkv", 2),
    "to_out.0": ("attention.out", 0),
    **{f"{kind}{number}": (f"feed_forward.w{number}", 0) for kind in ("w", "linear_") for number in (1, 2, 3)},
}


def published_layer(name: str, time_embedding: str) -> tuple[str, int]:
    """Return the layer's name there, behind ComfyUI's prefix, and which part of its outputs `name` gives.

    `time_embedding` is the layer's name that ends the time embedding. KeyError for one that students leave alone.
    """
    if name == time_embedding:
        return "diffusion_model.t_embedder.mlp.2", 0
    blocks, number, _, layer = name.split(".", 3)
    published, part = _IN_A_BLOCK[layer]
    return f"diffusion_model.{blocks}.{number}.{published}", part
