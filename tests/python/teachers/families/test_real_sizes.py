"""The published networks at their real sizes, without memory: what an adapter names in them is there."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from ddx.networks.lora import target_layers
from ddx.teachers.families.table import FAMILIES
from ddx.teachers.parts.original_names import OriginalNames
from ddx.teachers.parts.original_tensors import joined, split
from ddx.teachers.single_file_base import agree

# SANA-1.5: diffusers' scripts/convert_sana_to_diffusers.py
SANA_1600M = {
    "num_attention_heads": 70,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "sample_size": 32,
    "qk_norm": "rms_norm_across_heads",
}
# Tongyi-MAI/Z-Image and Alpha-VLLM/Lumina-Image-2.0: transformer/config.json, as public projects quote them
Z_IMAGE = {"cap_feat_dim": 2560, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512]}
LUMINA2 = {"cap_feat_dim": 2304, "multiple_of": 256, "num_kv_heads": 8, "num_layers": 26, "axes_lens": (300, 512, 512)}
# PixArt: diffusers' scripts/convert_pixart_sigma_to_diffusers.py and convert_pixart_alpha_to_diffusers.py
PIXART = {"caption_channels": 4096, "sample_size": 128, "interpolation_scale": 2}
# stabilityai/stable-diffusion-3.5-medium and -large: transformer/config.json, as public projects quote them
SD35_MEDIUM = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
SD35_LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
# diffusers' scripts/convert_flux2_to_diffusers.py
KLEIN = {"rope_theta": 2000, "guidance_embeds": False}
KLEIN_4B = {**KLEIN, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
KLEIN_9B = {**KLEIN, "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}

# family, config beside diffusers' defaults, parameters, tensors
MODELS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "sana15-1600m": ("sana", {**SANA_1600M, "num_layers": 20}, 1_604_641_952, 476),
    "sana15-4800m": ("sana", {**SANA_1600M, "num_layers": 60}, 4_721_825_952, 1396),
    "z-image": ("z-image", Z_IMAGE, 6_154_908_736, 521),
    "auraflow": ("auraflow", {}, 6_833_439_744, 331),
    "lumina2": ("lumina2", LUMINA2, 2_609_769_152, 459),
    # diffusers' defaults; its weights' index counts 40_860_802_176 bytes in bfloat16
    "qwen-image": ("qwen-image", {}, 20_430_401_088, 1933),
    # diffusers' defaults; the hub counts these parameters in its safetensors
    "flux1-dev": ("flux1", {"guidance_embeds": True}, 11_901_408_320, 1160),
    "pixart-sigma": ("pixart-sigma", {**PIXART, "use_additional_conditions": False}, 610_856_096, 603),
    "pixart-alpha": ("pixart-alpha", PIXART, 611_349_152, 611),
    "sd35-medium": ("stable-diffusion-3", SD35_MEDIUM, 2_243_171_520, 909),
    "sd35-large": ("stable-diffusion-3", SD35_LARGE, 8_056_627_520, 1227),
    "flux2-klein-base-4b": ("flux2-klein", KLEIN_4B, 3_875_544_576, 169),
    "flux2-klein-base-9b": ("flux2-klein", KLEIN_9B, 9_078_581_248, 233),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_adapter_finds_its_layers_in_the_published_network(name: str) -> None:
    family, config, num_parameters, num_tensors = MODELS[name]
    row = next(row for row in FAMILIES if row.name == family)
    adapter = row.adapter_class
    teacher: Any = object.__new__(adapter)  # no folder: its weights are not here
    with torch.device("meta"):
        network = getattr(diffusers, adapter.part_classes[adapter.denoiser_part][0])(**config)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    assert len(network.state_dict()) == num_tensors
    linear = teacher.time_embedding_linear(network)
    layers = {layer: layer_name for layer_name, layer in network.named_modules()}
    targets = target_layers(network, adapter.lora_targets)
    for end in adapter.lora_targets:
        assert any(target.endswith(end) for target in targets), end
    assert layers[linear] not in targets and (linear.bias is not None) == adapter.folds_numbers
    places = {teacher.comfyui_layer(target) for target in (*targets, layers[linear])}
    assert len(places) == len(targets) + 1
    check_original_names(name, row.original, adapter.part_classes[adapter.denoiser_part][0], network)
    features = teacher.feature_layers(network)
    assert len(features) >= 3 and all(layer in layers for layer in features)


def check_original_names(name: str, original: OriginalNames | None, kind: str, network: torch.nn.Module) -> None:
    """Diffusers' own reader of the authors' names gives what ours wrote, and the shapes tell the teacher.

    Along the first dimension alone, where all that is joined or swapped is: so that real sizes cost nothing.
    """
    if original is None:
        return
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    weights = {key: 1000.0 * i + torch.arange(shape[0])[:, None] for i, (key, shape) in enumerate(shapes.items())}
    stacks = original.stacks(weights)
    written = {key: joined(stack, weights) for key, stack in stacks.items()}
    back = {key: value for there, stack in stacks.items() for key, value in split(stack, written[there], shapes)}
    header = {key: {"shape": list(stack.shape(shapes))} for key, stack in stacks.items()}
    assert [base for base, signs in original.bases.items() if agree(signs, header)] == [name][: name in original.bases]
    assert set(original.marks) <= written.keys() and original.needs.keys() <= written.keys()
    checkpoint = {**written, **dict.fromkeys(original.unread, torch.zeros(1))}
    read = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"](checkpoint=checkpoint, config={})
    for key, value in weights.items():
        assert torch.equal(back[key], value), key
        if not (".norm_" in key and original.unwritable):  # diffusers does not read SANA-1.5's
            assert torch.equal(read[key], value), key
    assert read.keys() <= weights.keys()
