"""Where a layer of diffusers' SANA transformer is in the checkpoints that its authors publish (Xie et al. 2024)."""

from __future__ import annotations

_IN_A_BLOCK = {
    "attn1.to_q": ("attn.qkv", 0),
    "attn1.to_k": ("attn.qkv", 1),
    "attn1.to_v": ("attn.qkv", 2),
    "attn1.to_out.0": ("attn.proj", 0),
    "attn2.to_q": ("cross_attn.q_linear", 0),
    "attn2.to_k": ("cross_attn.kv_linear", 0),
    "attn2.to_v": ("cross_attn.kv_linear", 1),
    "attn2.to_out.0": ("cross_attn.proj", 0),
    "ff.conv_inverted": ("mlp.inverted_conv.conv", 0),
    "ff.conv_point": ("mlp.point_conv.conv", 0),
}
_BLOCKS = "transformer_blocks."


def published_layer(name: str) -> tuple[str, int]:
    """Return the layer's name there, behind ComfyUI's prefix, and which part of its outputs ``name`` gives.

    KeyError for a layer that low-rank students leave alone.
    """
    if name.endswith("timestep_embedder.linear_2"):
        return "diffusion_model.t_embedder.mlp.2", 0
    number, _, layer = name.removeprefix(_BLOCKS).partition(".")
    published, part = _IN_A_BLOCK[layer]
    return f"diffusion_model.blocks.{number}.{published}", part
