"""The text encoders of the named teachers, for what is counted before their weights are here.

The configs in the package are those of denoisers and autoencoders. Of a text encoder its published config says more
than shapes, and few of them serve all families: here is what shapes them, and the rest is the class's default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ddx.teachers.components import component_class, load_model

if TYPE_CHECKING:
    from torch import nn

    from ddx.teachers.base import Teacher

_CLIP: dict[str, dict[str, Any]] = {
    "CLIP ViT-L": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "OpenCLIP ViT-H": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23},
    "OpenCLIP ViT-bigG": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32},
}
_CLIP["CLIP ViT-L"] |= {"projection_dim": 768}
_CLIP["OpenCLIP ViT-H"] |= {"num_attention_heads": 16, "hidden_act": "gelu"}
_CLIP["OpenCLIP ViT-bigG"] |= {"num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"}

SIZES: dict[str, dict[str, Any]] = {
    **_CLIP,
    "Gemma 2 2B": {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
    "T5 XXL": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
    "Pile-T5 XL": {
        "vocab_size": 32128,
        "d_model": 2048,
        "d_ff": 5120,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 32,
        "feed_forward_proj": "gated-gelu",
    },
    "Qwen3 4B": {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-VL 7B": {
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
    },
}

_T5 = ("T5EncoderModel", "T5 XXL")
_BIG_G = ("CLIPTextModelWithProjection", "OpenCLIP ViT-bigG")
OF_FAMILY: dict[str, dict[str, tuple[str, str | dict[int, str]]]] = {
    "sana": {"text_encoder": ("Gemma2Model", "Gemma 2 2B")},
    "stable-diffusion": {"text_encoder": ("CLIPTextModel", {768: "CLIP ViT-L", 1024: "OpenCLIP ViT-H"})},
    "sdxl": {"text_encoder": ("CLIPTextModel", "CLIP ViT-L"), "text_encoder_2": _BIG_G},
    "stable-diffusion-3": {
        "text_encoder": ("CLIPTextModelWithProjection", "CLIP ViT-L"),
        "text_encoder_2": _BIG_G,
        "text_encoder_3": _T5,
    },
    "flux1": {"text_encoder": ("CLIPTextModel", "CLIP ViT-L"), "text_encoder_2": _T5},
    "pixart-alpha": {"text_encoder": _T5},
    "pixart-sigma": {"text_encoder": _T5},
    "auraflow": {"text_encoder": ("UMT5EncoderModel", "Pile-T5 XL")},
    "z-image": {"text_encoder": ("Qwen3Model", "Qwen3 4B")},
    "lumina2": {"text_encoder": ("Gemma2Model", "Gemma 2 2B")},
    "qwen-image": {"text_encoder": ("Qwen2_5_VLForConditionalGeneration", "Qwen2.5-VL 7B")},
    "flux2-klein": {"text_encoder": ("Qwen3ForCausalLM", "Qwen3 4B")},
}
"""By part: the class in transformers, and its size; by the width of the text where that tells which one it is."""


def encoder_parts(teacher: Teacher) -> tuple[str, ...]:
    """Return the parts of a teacher's pipeline that are text encoders."""
    return tuple(part for part in teacher.part_classes if part.startswith("text_encoder"))


def published_size(teacher: Teacher, part: str) -> tuple[str, dict[str, Any]]:
    """Return the class in transformers of a text encoder of a named teacher, and what shapes it."""
    kind, size = OF_FAMILY[teacher.family][part]
    return kind, SIZES[size if isinstance(size, str) else size[teacher.text_width]]


def encoder_without_weights(teacher: Teacher, part: str) -> nn.Module:
    """Return a text encoder, within `without_weights`: from its config in the teacher's folder, else from here."""
    if (teacher.folder / part / "config.json").is_file():
        classes, place = teacher.part_classes[part], torch.device("cpu")
        component_class(teacher.source_info, part, classes)
        return load_model(teacher.source_info, part, classes, dtype=teacher.text_dtype, device=place)
    import transformers

    kind, size = published_size(teacher, part)
    loader: Any = getattr(transformers, kind)
    config = loader.config_class(**size)
    before = torch.get_default_dtype()
    torch.set_default_dtype(teacher.text_dtype)
    try:
        model: nn.Module = loader(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)
