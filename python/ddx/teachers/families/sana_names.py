"""The names of SANA's weights in the checkpoints that its authors publish (Xie et al. 2024)."""

from __future__ import annotations

from ddx.teachers.parts.original_names import OriginalNames, stacked

_BLOCK = {
    "scale_shift_table": "scale_shift_table",
    **stacked("attn.qkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn1.norm_q": "attn.q_norm",
    "attn1.norm_k": "attn.k_norm",
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    **stacked("cross_attn.kv_linear", "attn2.to_k", "attn2.to_v"),
    "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.conv_inverted": "mlp.inverted_conv.conv",
    "ff.conv_depth": "mlp.depth_conv.conv",
    "ff.conv_point": "mlp.point_conv.conv",
}
_NORMS = "blocks.0.attn.q_norm.weight"  # SANA-1.5 has them, and SANA not


def _sized(width: int, blocks: int) -> dict[str, tuple[int, ...] | bool]:
    last, beyond = f"blocks.{blocks - 1}.attn.qkv.weight", f"blocks.{blocks}.attn.qkv.weight"
    return {"x_embedder.proj.weight": (width, 32, 1, 1), last: True, beyond: False}


ORIGINAL = OriginalNames(
    marks=("blocks.0.cross_attn.kv_linear.weight", "blocks.0.mlp.inverted_conv.conv.weight", "t_block.1.weight"),
    ends={
        "scale_shift_table": "final_layer.scale_shift_table",
        "patch_embed.proj": "x_embedder.proj",
        "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",  # of a network that takes guidance
        "time_embed.linear": "t_block.1",
        "caption_projection.linear_1": "y_embedder.y_proj.fc1",
        "caption_projection.linear_2": "y_embedder.y_proj.fc2",
        "caption_norm": "attention_y_norm",
        "proj_out": "final_layer.linear",
    },
    blocks={"transformer_blocks": ("blocks", _BLOCK)},
    bases={
        "sana-600m": _sized(1152, 28),
        "sana-600m-1024": _sized(1152, 28),
        "sana-1600m": {**_sized(2240, 20), _NORMS: False},
        "sana15-1600m": {**_sized(2240, 20), _NORMS: True},
        "sana15-4800m": {**_sized(2240, 60), _NORMS: True},
    },
    unread=("pos_embed", "y_embedder.y_embedding"),
    unwritable="their empty caption, y_embedder.y_embedding, is not in diffusers' folders",
)
