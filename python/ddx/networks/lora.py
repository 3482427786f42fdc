"""Low-rank students (Hu et al. 2022, arXiv:2106.09685) on a backbone that all networks of a run share.

Student, fake score and every other copy of the teacher are module trees of their own around the *same* frozen weights:
each holds its low-rank matrices, in float32, and nothing else. So there is no adapter to switch, gradient checkpointing
recomputes the right forward, and several trained networks take the memory of about one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.networks.quantised import plain_names, quantised_layers
from ddx.teachers.extra_input import ScalarEmbedder

ADAPTER = "default"


@dataclass(frozen=True)
class LowRank:
    """What is added to a layer: `up @ down` to its weight, which needs no further scale, and `bias` to its bias.

    `[rank, in]` and `[out, rank]`, or `[rank, in, 1, 1]` and `[out, rank, 1, 1]` of a convolution; bias `[out]`.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


def shared_copy(network: nn.Module) -> nn.Module:
    """Return a copy of the module tree whose parameters and buffers are those of `network`, not copies."""
    memo: dict[int, Any] = {id(p): p for p in network.parameters()}
    memo |= {id(b): b for b in network.buffers()}
    return copy.deepcopy(network, memo)


def add_lora(network: nn.Module, targets: tuple[str, ...], *, rank: int, alpha: float) -> nn.Module:
    """Put low-rank matrices beside the layers named in `targets` and freeze the others (in place); returns it.

    The embedders of extra inputs stay trainable. The product starts at zero, so the network starts as it was. Raises
    UsageError when no layer has one of the names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    embedders = [(name, module) for name, module in network.named_modules() if isinstance(module, ScalarEmbedder)]
    extra = [f"{name}.{inner}" for name, embedder in embedders for inner, _ in embedder.named_parameters()]
    names = target_layers(network, targets)
    if not names:
        raise UsageError(
            f"no layer of {type(network).__name__} is named {', '.join(targets)}",
            hint="leave --lora-rank away for this teacher",
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights=True)
    inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for name, parameter in network.named_parameters():
        trained = ".lora_" in name or name in extra
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
    return network


def target_layers(network: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the linears and convolutions that end in one of `targets`, and of no other modules.

    A list of layers may have the name that a layer has elsewhere.
    """
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and f".{name}".endswith(tuple(f".{end}" for end in targets))
    ]


def is_lora(network: nn.Module) -> bool:
    """Whether `network` has low-rank matrices."""
    return any(".lora_A." in name for name, _ in network.named_parameters())


@torch.no_grad()
def plain_state(network: nn.Module, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the state dict with low-rank products added to their layers, float32 there, under the layers' own names.

    On the host, where there is room for whole weights. That of a network without any is its own. base: the full weights
    by name, in place of those that the network stores in fewer bits; without, these are widened.
    """
    state = network.state_dict()
    if not is_lora(network):
        return state
    plain: dict[str, Tensor] = {}
    for name, stored in quantised_layers(network):
        own = name.removesuffix(".base_layer") + ".weight"
        state[f"{name}.weight"] = stored.weight if base is None else base[own].to(stored.packed.device)
    for name, value in plain_names(state).items():
        if ".lora_" in name:
            continue
        if ".base_layer." not in name:
            plain[name] = (value.float() if value.is_floating_point() else value).cpu()
            continue
        layer_name, _, part = name.partition(".base_layer.")
        layer: Any = network.get_submodule(layer_name)
        plain[f"{layer_name}.{part}"] = value.float().cpu()
        if part == "weight":
            product = layer.get_delta_weight(ADAPTER).float().to(value.device)  # frozen weights may be on the host
            plain[f"{layer_name}.{part}"] = (value.float() + product).cpu()
    return plain


@torch.no_grad()
def low_rank_products(network: nn.Module) -> dict[str, LowRank]:
    """Return what low-rank matrices add to the network, by the name of the layer, in the order of its modules."""
    products: dict[str, LowRank] = {}
    for name, module in network.named_modules():
        layer: Any = module
        if ADAPTER in getattr(layer, "lora_A", ()):
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            products[name] = LowRank(down=down, up=layer.scaling[ADAPTER] * up)
    return products
