"""The names of FLUX.1's weights in the authors' checkpoints (black-forest-labs/flux, `src/flux/model.py`)."""

from __future__ import annotations

from ddx.teachers.parts.original_names import OriginalNames, stacked

_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    **stacked("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **stacked("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_SINGLE = {
    "norm.linear": "modulation.lin",
    **stacked("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}

ORIGINAL = OriginalNames(
    marks=(
        "double_blocks.0.img_attn.norm.key_norm.scale",
        "double_blocks.0.img_mod.lin.weight",
        "vector_in.in_layer.weight",
    ),
    ends={
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "context_embedder": "txt_in",
        "x_embedder": "img_in",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
    blocks={
        "transformer_blocks": ("double_blocks", _DOUBLE),
        "single_transformer_blocks": ("single_blocks", _SINGLE),
    },
    swapped=("norm_out.linear",),
    bases={"flux1-dev": {"img_in.weight": (3072, 64), "double_blocks.18.img_attn.qkv.weight": True}},
    needs={"guidance_in.in_layer.weight": "a network without guidance, as FLUX.1-schnell, which is a student already"},
    text={
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    },
)
