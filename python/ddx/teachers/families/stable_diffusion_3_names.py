"""The names of SD3's and SD3.5's weights in the authors' checkpoints (Esser et al. 2024), `sd3.py` of sd3-ref."""

from __future__ import annotations

from ddx.teachers.parts.original_names import OriginalNames, stacked

_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    **stacked("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **stacked("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    **stacked("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}

ORIGINAL = OriginalNames(
    marks=("joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight"),
    ends={
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
    blocks={"transformer_blocks": ("joint_blocks", _BLOCK)},
    swapped=("norm_out.linear", "transformer_blocks.{last}.norm1_context.linear"),
    bases={
        "sd35-medium": {"pos_embed": (1, 384 * 384, 1536), "joint_blocks.0.x_block.attn2.qkv.weight": True},
        "sd35-large": {"pos_embed": (1, 192 * 192, 2432)},
    },
    text={
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
    },
)
