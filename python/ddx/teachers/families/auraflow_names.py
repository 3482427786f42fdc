"""The names of AuraFlow's weights in the authors' checkpoints (cloneofsimo/minRF, `advanced/mmdit.py`)."""

from __future__ import annotations

from ddx.teachers.parts.original_names import OriginalNames

_LAYERS = {"linear_1": "c_fc1", "linear_2": "c_fc2", "out_projection": "c_proj"}
_DOUBLE = {
    "norm1.linear": "modX.1",
    "norm1_context.linear": "modC.1",
    **{f"ff.{layer}": f"mlpX.{original}" for layer, original in _LAYERS.items()},
    **{f"ff_context.{layer}": f"mlpC.{original}" for layer, original in _LAYERS.items()},
    **{f"attn.to_{letter}": f"attn.w2{letter}" for letter in "qkv"},
    **{f"attn.add_{letter}_proj": f"attn.w1{letter}" for letter in "qkv"},
    "attn.to_out.0": "attn.w2o",
    "attn.to_add_out": "attn.w1o",
}
_SINGLE = {
    "norm1.linear": "modCX.1",
    **{f"ff.{layer}": f"mlp.{original}" for layer, original in _LAYERS.items()},
    **{f"attn.to_{letter}": f"attn.w1{letter}" for letter in "qkv"},
    "attn.to_out.0": "attn.w1o",
}

ORIGINAL = OriginalNames(
    marks=("double_layers.0.attn.w1q.weight", "cond_seq_linear.weight"),
    ends={
        "register_tokens": "register_tokens",
        "time_step_proj.linear_1": "t_embedder.mlp.0",
        "time_step_proj.linear_2": "t_embedder.mlp.2",
        "context_embedder": "cond_seq_linear",
        "norm_out.linear": "modF.1",
        "proj_out": "final_linear",
        "pos_embed.pos_embed": "positional_encoding",
        "pos_embed.proj": "init_x_linear",
    },
    blocks={
        "joint_transformer_blocks": ("double_layers", _DOUBLE),
        "single_transformer_blocks": ("single_layers", _SINGLE),
    },
    swapped=("norm_out.linear",),
    bases={"auraflow": {"cond_seq_linear.weight": (3072, 2048)}},
)
