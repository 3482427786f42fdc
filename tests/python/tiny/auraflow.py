"""Joint and single blocks, positions of a larger grid than the picture's."""

from pathlib import Path

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from pipelines import kl_autoencoder, t5_tokenizer


def make(folder: Path) -> Path:
    tokenizer = t5_tokenizer()
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=40,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
        )
    )
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    )
    torch.nn.init.normal_(transformer.context_embedder.weight)  # or the text would hardly be seen
    vae = kl_autoencoder(4, scaling_factor=0.13025)
    pipeline = AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
