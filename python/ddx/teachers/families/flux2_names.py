"""The names of FLUX.2's weights in the authors' checkpoints, which ComfyUI's network follows."""

from __future__ import annotations

from ddx.teachers.parts.original_names import OriginalNames, stacked

_DOUBLE = {
    **stacked("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    **stacked("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}

ORIGINAL = OriginalNames(
    marks=("double_blocks.0.img_attn.norm.key_norm.scale", "single_stream_modulation.lin.weight"),
    ends={
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
    blocks={
        "transformer_blocks": ("double_blocks", _DOUBLE),
        "single_transformer_blocks": ("single_blocks", _SINGLE),
    },
    swapped=("norm_out.linear",),
    bases={"flux2-klein-base-4b": {"img_in.weight": (3072, 128), "txt_in.weight": (3072, 7680)}},
    refused={"guidance_in.": "a network that takes guidance, as FLUX.2-dev"},
)
