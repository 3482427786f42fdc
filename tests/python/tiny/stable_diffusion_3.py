"""A block with a second attention and one without, norms on queries and keys, and a last one that drops the text."""

from pathlib import Path
from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from pipelines import clip_tokenizer, kl_autoencoder, t5_encoder, t5_tokenizer


def make(folder: Path, **settings: Any) -> Path:
    tokenizer, last = clip_tokenizer(), t5_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        **ids,
    }
    first = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=32, projection_dim=16, **text))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=48, projection_dim=24, hidden_act="gelu", **text))
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        caption_projection_dim=32,
        pooled_projection_dim=40,
        pos_embed_max_size=12,
        **{"dual_attention_layers": (0,), "qk_norm": "rms_norm", **settings},
    )
    vae = kl_autoencoder(
        16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(len(last), 96),
        tokenizer_3=last,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
