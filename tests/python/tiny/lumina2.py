"""Refiners and joint blocks, grouped keys, and a Gemma 2."""

from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from pipelines import flux_autoencoder, gemma_encoder, gemma_tokenizer

EXACT = False  # the pipeline refines each text padded to 256 tokens
TIMES = (1.0, 0.0)
SIGN = -1.0


def make(folder: Path) -> Path:
    tokenizer = gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=40,
    )
    pipeline = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flux_autoencoder(4),
        text_encoder=gemma_encoder(len(tokenizer), 40, layers=3),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
