"""Makers of real diffusers pipelines with random weights, tiny or full-sized, without any network.

The tests' teachers: the classes, configs, tokenizers and file layout are those of published pipelines, only the
sizes and the weights are not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

# Words for the tokenizers' merges; the rest falls back to letters and bytes.
_WORDS = """
    a an the of and with in on under above below left right to two three small large red green blue yellow circle
    square triangle cat dog house photograph painting light User Prompt: Enhanced: prompt detailed image simple focus
"""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_sana(
    folder: Path,
    seed: int = 0,
    text_width: int = 32,
    *,
    layers: int = 2,
    flow_shift: float = 3.0,
    width: int = 32,
    **more: Any,
) -> Path:
    """A tiny SanaPipeline: 64 px, 8 latent channels on an 8x8 grid, a two-layer Gemma 2. Returns ``folder``.

    ``more`` is for its transformer.
    """
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    torch.manual_seed(seed)
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=width // 8,
        attention_head_dim=8,
        num_layers=layers,
        num_cross_attention_heads=2,
        cross_attention_head_dim=width // 2,
        cross_attention_dim=width,
        caption_channels=text_width,
        sample_size=8,
        patch_size=1,
        **more,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(4, 8, 8, 16),
        decoder_block_out_channels=(4, 8, 8, 16),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    tokenizer = gemma_tokenizer()
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_encoder(len(tokenizer), text_width, layers=2),
        vae=vae,
        transformer=transformer,
        scheduler=_sana_scheduler(DPMSolverMultistepScheduler, flow_shift),
    )
    return _save(pipeline, folder)


def make_stable_diffusion(
    folder: Path,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    seed: int = 0,
    *,
    zero_snr: bool = False,
    text_act: str = "quick_gelu",
) -> Path:
    """A tiny StableDiffusionPipeline: 64 px, 4 latent channels on an 8x8 grid, a two-layer CLIP. Returns ``folder``."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act=text_act,  # "gelu": an OpenCLIP, as in Stable Diffusion 2
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = kl_autoencoder(4)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _save(pipeline, folder)


# SANA-600M as published: the transformer's and the autoencoder's configs at full size.
SANA_600M_TRANSFORMER: dict[str, Any] = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "sample_size": 16,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
DC_AE_F32C32: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}


def make_sana_600m(
    folder: Path, *, seed: int = 0, layers: int = 28, text_layers: int = 2, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """SANA-600M at its real size with random weights, stored in ``dtype``; Gemma is real in width, not in depth.

    About 1.9 GB on disk in bfloat16 and a little more in memory while it is made; less with fewer ``layers``.
    """
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    torch.manual_seed(seed)
    tokenizer = gemma_tokenizer()
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that no float32 copy of the networks is ever made
    try:
        encoder = gemma_encoder(
            len(tokenizer), 2304, layers=text_layers, intermediate=9216, heads=8, kv_heads=4, head_dim=256
        )
        transformer = SanaTransformer2DModel(**{**SANA_600M_TRANSFORMER, "num_layers": layers})
        vae = AutoencoderDC(**DC_AE_F32C32)
    finally:
        torch.set_default_dtype(default)
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=_sana_scheduler(DPMSolverMultistepScheduler, 3.0),
    )
    return _save(pipeline, folder)


def fill_hub_cache(cache_dir: Path, repo_id: str, folder: Path, *, commit: str = COMMIT) -> Path:
    """Lays ``folder`` out in ``cache_dir`` as huggingface_hub does, under ``refs/main`` alone; returns the snapshot."""
    root = cache_dir / ("models--" + repo_id.replace("/", "--"))
    snapshot = root / "snapshots" / commit
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    blobs = root / "blobs"
    blobs.mkdir(exist_ok=True)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = blobs / f"{number:040x}"
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * (len(link.relative_to(root).parts) - 1)) / "blobs" / blob.name)
    return snapshot


def gemma_tokenizer(words: Sequence[str] = tuple(_WORDS.split()), vocab_size: int = 900) -> Any:
    """A Gemma tokenizer trained on the spot: these words are one token each, as far as ``vocab_size`` allows."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    # one word at a time, its space in front as in Gemma's vocabulary, so that no token spans two words
    tokenizer.train_from_iterator([*[f" {word}" for word in words] * 2, *words], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)


def clip_tokenizer() -> Any:
    """A CLIP tokenizer over letters and a few merges, 77 tokens long."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [f"{letter}</w>" for letter in letters]
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
    vocab = {piece: number for number, piece in enumerate(pieces + ["".join(merge) for merge in merges])}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer() -> Any:
    """A T5 tokenizer over letters and a few words, without sentinels."""
    from transformers import T5Tokenizer

    letters = [(chr(code), -6.0) for code in range(33, 127)]
    words = [(f"▁{word}", -4.0) for word in ("the", "a", "red", "cat", "circle")]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*special, *letters, *words], extra_ids=0, model_max_length=512)


def t5_encoder(vocab_size: int, width: int) -> Any:
    """A two-layer T5 encoder with random weights and gated layers, as T5 v1.1 has."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocab_size,
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def qwen_tokenizer() -> Any:
    """A Qwen tokenizer over bytes and a few merges, with the turns of its chat template and an empty thought."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("r", "e"), ("re", "d"), ("Ġ", "the")]
    vocab = {piece: number for number, piece in enumerate(pieces + ["".join(merge) for merge in merges])}
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"):
        vocab[special] = len(vocab)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    return tokenizer


def qwen3_config(tokenizer: Any, width: int, *, layers: int) -> Any:
    """The config of a tiny Qwen3."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def kl_autoencoder(channels: int, **more: Any) -> Any:
    """An AutoencoderKL of eight pixels a cell, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
        **more,
    )


def flux_autoencoder(channels: int) -> Any:
    """An autoencoder like FLUX.1's: eight pixels a cell, a shift, and no layers of their own for the latents."""
    return kl_autoencoder(
        channels, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )


def gemma_encoder(
    vocab_size: int,
    width: int,
    *,
    layers: int,
    intermediate: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
) -> Any:
    """A Gemma-2 model of the given sizes with random weights."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=intermediate or 2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config)


def _sana_scheduler(kind: Any, flow_shift: float) -> Any:
    return kind(
        flow_shift=flow_shift, use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="dpmsolver++"
    )


def _save(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
