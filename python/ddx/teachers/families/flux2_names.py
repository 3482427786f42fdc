"""Where the layers of diffusers' FLUX.2 are in the authors' checkpoints, which ComfyUI's network follows."""

from __future__ import annotations

TIME = "time_guidance_embed.timestep_embedder.linear_2"

# A block's layers there, and which part of the outputs.
PUBLISHED = {
    **{f"attn.to_{name}": ("img_attn.qkv", part) for part, name in enumerate("qkv")},
    **{f"attn.add_{name}_proj": ("txt_attn.qkv", part) for part, name in enumerate("qkv")},
    "attn.to_out.0": ("img_attn.proj", 0),
    "attn.to_add_out": ("txt_attn.proj", 0),
    "ff.linear_in": ("img_mlp.0", 0),
    "ff.linear_out": ("img_mlp.2", 0),
    "ff_context.linear_in": ("txt_mlp.0", 0),
    "ff_context.linear_out": ("txt_mlp.2", 0),
    "attn.to_qkv_mlp_proj": ("linear1", 0),
    "attn.to_out": ("linear2", 0),
}


def published_layer(name: str) -> tuple[str, int]:
    """Return the layer's name there, behind ComfyUI's prefix, and which part of its outputs `name` gives."""
    if name == TIME:
        return "diffusion_model.time_in.out_layer", 0
    blocks, number, layer = name.split(".", 2)
    published, part = PUBLISHED[layer]
    kind = "single_blocks" if blocks == "single_transformer_blocks" else "double_blocks"
    return f"diffusion_model.{kind}.{number}.{published}", part
