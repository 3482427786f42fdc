"""Low-rank students as files that other programs put onto the teacher.

    pytorch_lora_weights.safetensors   diffusers' `load_lora_weights`, and peft
    comfyui_lora.safetensors           ComfyUI, and A1111 where it knows the family

The matrices hold their scale, so that alpha is the rank, and a program that reads no alpha draws the same. What is
folded into the student, its guidance and the length of its steps, is a bias of the time embedding; the files hold it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.errors import DdxError
from ddx.networks.lora import LowRank, low_rank_products
from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE
from ddx.teachers.base import Teacher


def write_lora_files(teacher: Teacher, student: nn.Module, plain: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Write both files into `folder`, for a student with low-rank matrices and `plain`, the same as a plain network.

    Raises DdxError when the disk refuses.
    """
    products = additions(teacher, student, plain)
    write_diffusers_file(folder / DIFFUSERS_FILE, products, teacher, dtype)
    write_comfyui_file(folder / COMFYUI_FILE, products, teacher, dtype)


def write_diffusers_file(path: Path, products: Mapping[str, LowRank], teacher: Teacher, dtype: torch.dtype) -> None:
    """Write diffusers' file, its peft config in the header. Raises DdxError when the disk refuses."""
    state, config = diffusers_state(products, teacher.denoiser_part)
    save_tensors(path, state, {"lora_adapter_metadata": json.dumps(config)}, dtype)


def write_comfyui_file(path: Path, products: Mapping[str, LowRank], teacher: Teacher, dtype: torch.dtype) -> None:
    """Write ComfyUI's file. Raises DdxError when the disk refuses."""
    save_tensors(path, comfyui_state(products, teacher), {}, dtype)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None
) -> None:
    """Write a safetensors file whole or not at all, in `dtype` (None: as they are). DdxError when the disk refuses.

    A scalar, alpha, is not rounded: 300 is no bfloat16.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            name: value.detach().to("cpu", dtype if dtype is not None and value.ndim else value.dtype).contiguous()
            for name, value in tensors.items()
        }
        save_file(saved, temporary, metadata={"format": "pt", **metadata})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise DdxError(f"cannot write {path}: {error}", hint="is there space left?") from error


@torch.no_grad()
def additions(teacher: Teacher, student: nn.Module, plain: nn.Module) -> dict[str, LowRank]:
    """Return what makes the teacher's network the plain one: the low-rank products, and what is folded into a bias."""
    products = low_rank_products(student)
    if not teacher.folds_numbers:
        return products
    linear = teacher.time_embedding_linear(student)
    folded = teacher.time_embedding_linear(plain).bias.to(linear.bias.device) - linear.bias
    if folded.any():
        (name,) = (name for name, module in student.named_modules() if module is linear)
        rank = next(iter(products.values())).down.shape[0]
        products[name] = LowRank(
            down=folded.new_zeros(rank, linear.in_features), up=folded.new_zeros(len(folded), rank), bias=folded
        )
    return products


def diffusers_state(products: Mapping[str, LowRank], part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of diffusers' file and the peft config that its header holds, for a denoiser called `part`.

    peft knows a bias of all layers or of none, and diffusers 0.37 asks for the two patterns.
    """
    has_bias = any(product.bias is not None for product in products.values())
    state: dict[str, Tensor] = {}
    for name, product in products.items():
        state[f"{part}.{name}.lora_A.weight"] = product.down
        state[f"{part}.{name}.lora_B.weight"] = product.up
        if has_bias:
            bias = product.bias
            state[f"{part}.{name}.lora_B.bias"] = product.up.new_zeros(len(product.up)) if bias is None else bias
    rank = next(iter(products.values())).down.shape[0]
    config: dict[str, Any] = {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
    config |= {"target_modules": list(products), "use_dora": False, "lora_bias": has_bias}
    return state, {f"{part}.{key}": value for key, value in config.items()}


def comfyui_state(products: Mapping[str, LowRank], teacher: Teacher) -> dict[str, Tensor]:
    """Return the tensors of ComfyUI's file: `lora_down`, `lora_up` and `alpha` of each of its layers.

    Layers that are one in ComfyUI become one of a larger rank. What is folded is a `diff_b`, beside the `diff` of the
    weight, which is the product, and without which A1111 passes it by.
    """
    parts: dict[str, dict[int, LowRank]] = {}
    for name, product in products.items():
        layer, position = teacher.comfyui_layer(name)
        parts.setdefault(layer, {})[position] = product
    state: dict[str, Tensor] = {}
    for layer, by_position in parts.items():
        product = _stacked([by_position[position] for position in range(len(by_position))])
        if product.bias is not None:
            state[f"{layer}.diff"] = product.up @ product.down
            state[f"{layer}.diff_b"] = product.bias
            continue
        state[f"{layer}.lora_down.weight"] = product.down
        state[f"{layer}.lora_up.weight"] = product.up
        state[f"{layer}.alpha"] = torch.tensor(float(len(product.down)))
    return state


def _stacked(products: list[LowRank]) -> LowRank:
    """Return the product for a layer whose outputs are those of several layers of the same input, one after another."""
    if len(products) == 1:
        return products[0]
    return LowRank(
        down=torch.cat([product.down for product in products]),
        up=torch.block_diag(*(product.up for product in products)),
    )
