"""The names of Lumina 2's and Z-Image's weights in the authors' checkpoints, which ComfyUI's networks follow.

Both are descendants of one network, Next-DiT (Zhuo et al. 2024).
"""

from __future__ import annotations

from ddx.teachers.parts.original_names import OriginalNames, stacked

_LISTS = ("layers", "noise_refiner", "context_refiner")


def _attention(name: str) -> dict[str, str | tuple[str, int]]:
    return {
        **stacked("attention.qkv", f"{name}.to_q", f"{name}.to_k", f"{name}.to_v"),
        f"{name}.to_out.0": "attention.out",
        f"{name}.norm_q": "attention.q_norm",
        f"{name}.norm_k": "attention.k_norm",
    }


_LUMINA2_BLOCK = {
    **_attention("attn"),
    **{f"feed_forward.linear_{number}": f"feed_forward.w{number}" for number in (1, 2, 3)},
    "norm1.linear": "adaLN_modulation.1",
    "norm1.norm": "attention_norm1",
    "norm1": "attention_norm1",  # of the context refiner, which has no time
    "norm2": "attention_norm2",
}

LUMINA2 = OriginalNames(
    marks=("cap_embedder.0.weight", "layers.0.adaLN_modulation.1.weight"),
    ends={
        "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_caption_embed.caption_embedder.0": "cap_embedder.0",
        "time_caption_embed.caption_embedder.1": "cap_embedder.1",
        "norm_out.linear_1": "final_layer.adaLN_modulation.1",
        "norm_out.linear_2": "final_layer.linear",
    },
    blocks={blocks: (blocks, _LUMINA2_BLOCK) for blocks in _LISTS},
    others_stay=True,
    bases={"lumina2": {"cap_embedder.1.weight": (2304, 2304)}},
    unread=("norm_final.weight",),
    text={"text_encoder": "text_encoders.gemma2_2b.transformer.model."},
)

Z_IMAGE = OriginalNames(
    marks=("cap_embedder.0.weight", "layers.0.adaLN_modulation.0.weight"),
    ends={
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1.linear": "final_layer.linear",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    },
    blocks={blocks: (blocks, _attention("attention")) for blocks in _LISTS},
    others_stay=True,
    bases={"z-image": {"cap_embedder.1.weight": (3840, 2560)}},
    unread=("norm_final.weight",),
)
