"""The published networks at their real sizes, without memory: what an adapter names in them is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from ddx.networks.lora import target_layers
from ddx.teachers.components import without_weights
from ddx.teachers.families.table import FAMILIES
from ddx.teachers.parts.original_names import OriginalNames
from ddx.teachers.parts.original_tensors import joined, split
from ddx.teachers.registry import TEACHERS, configs_of
from ddx.teachers.single_file_base import agree

# Parameters and tensors of what the configs in the package make, python/ddx/teachers/data/configs. They hold diffusers'
# defaults and what differs from them, from: diffusers' scripts/convert_sana_to_diffusers.py, convert_pixart_sigma_to_
# diffusers.py, convert_pixart_alpha_to_diffusers.py and convert_flux2_to_diffusers.py; transformer/config.json or
# unet/config.json of the others, as public projects quote them. Qwen-Image's weights' index counts 40_860_802_176 bytes
# in bfloat16; the hub counts FLUX.1's parameters in its safetensors.
MODELS: dict[str, tuple[int, int]] = {
    "sana-600m": (591_747_872, 548),
    "sana-600m-1024": (591_747_872, 548),
    "sana-sprint-600m-teacher": (591_876_896, 660),
    "sana-sprint-1600m-teacher": (1_604_641_952, 476),
    "sana-1600m": (1_604_462_752, 396),
    "sana15-1600m": (1_604_641_952, 476),
    "sana15-4800m": (4_721_825_952, 1396),
    "sd15": (859_520_964, 686),
    "sd21": (865_910_724, 686),
    "sdxl": (2_567_463_684, 1680),
    "z-image": (6_154_908_736, 521),
    "auraflow": (6_833_439_744, 331),
    "lumina2": (2_609_769_152, 459),
    "qwen-image": (20_430_401_088, 1933),
    "flux1-dev": (11_901_408_320, 1160),
    "pixart-sigma": (610_856_096, 603),
    "pixart-sigma-512": (610_856_096, 603),
    "pixart-alpha": (611_349_152, 611),
    "sd35-medium": (2_243_171_520, 909),
    "sd35-large": (8_056_627_520, 1227),
    "flux2-klein-base-4b": (3_875_544_576, 169),
}


# another named teacher has the shapes of each of these, which then do not tell the one from the other
OF_EQUAL_SHAPES = ("sana-600m", "sana-600m-1024", "sana-sprint-600m-teacher", "sana-sprint-1600m-teacher")


@pytest.mark.parametrize("name", MODELS)
def test_the_adapter_finds_its_layers_in_the_published_network(name: str) -> None:
    num_parameters, num_tensors = MODELS[name]
    teacher: Any = configs_of(name)
    adapter = type(teacher)
    with torch.device("meta"), without_weights():
        network = teacher.network()
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
    if name not in OF_EQUAL_SHAPES:
        original = next(row for row in FAMILIES if row.name == teacher.family).original
        check_original_names(name, original, adapter.part_classes[adapter.denoiser_part][0], network)
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


def test_every_named_teacher_has_its_configs_in_the_package() -> None:
    assert {*MODELS, "sana-tiny"} == set(TEACHERS)
