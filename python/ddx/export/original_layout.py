"""The names of weights in the authors' checkpoints: a transformer's as its family declares them, and those of latent
diffusion (Rombach et al. 2022), one file for all parts.

`model.diffusion_model.`      the UNet: its blocks in one row, `input_blocks`, `middle_block`, `output_blocks`
`first_stage_model.`          the autoencoder: levels of the decoder counted from the finest, attention as convolutions
a prefix of the family's      CLIP under the names of transformers, or OpenCLIP with queries, keys and values as one
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ddx.errors import DdxError
from ddx.teachers.parts.original_names import OriginalNames
from ddx.teachers.parts.original_tensors import joined

_PREFIX = "model.diffusion_model."
_VAE_PREFIX = "first_stage_model."

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {  # the second names are those of diffusers' first releases, which published files still have
    "group_norm": "norm",
    **dict.fromkeys(("to_q", "query"), "q"),
    **dict.fromkeys(("to_k", "key"), "k"),
    **dict.fromkeys(("to_v", "value"), "v"),
    **dict.fromkeys(("to_out.0", "proj_attn"), "proj_out"),
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def original_unet(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the UNet's tensors under their original names. DdxError for one that has none."""
    row = config["layers_per_block"]
    if not isinstance(row, int):
        raise _no_place("the UNet", f"blocks of {row} layers")
    attending = {int(name.split(".")[1]) for name in weights if re.match(r"up_blocks\.\d+\.attentions", name)}
    for name in weights:
        yield _PREFIX + _unet_name(name, row, attending), weights[name]


def _unet_name(name: str, row: int, attending: set[int]) -> str:
    layer, _, kind = name.rpartition(".")
    if layer in _UNET_ENDS:
        return f"{_UNET_ENDS[layer]}.{kind}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", layer):
        part, index, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{2 * index + (part == 'attentions')}.{_unet_rest(part, rest)}.{kind}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", layer):
        way, block, part, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = block * (row + 1) + index
        blocks = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
        return f"{blocks}.{int(part == 'attentions')}.{_unet_rest(part, rest)}.{kind}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", layer):
        return f"input_blocks.{(int(found[1]) + 1) * (row + 1)}.0.op.{kind}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", layer):
        block = int(found[1])
        return f"output_blocks.{block * (row + 1) + row}.{2 if block in attending else 1}.conv.{kind}"
    raise _no_place("the UNet", name)


def _unet_rest(part: str, rest: str) -> str:
    if part == "attentions":
        return rest
    if rest not in _UNET_RESNET:
        raise _no_place("the UNet", rest)
    return _UNET_RESNET[rest]


def original_transformer(weights: Mapping[str, Tensor], original: OriginalNames) -> Iterator[tuple[str, Tensor]]:
    """Yield a transformer's tensors under its authors' names. DdxError for one that has none."""
    try:
        stacks = original.stacks(weights)
    except KeyError as error:
        raise _no_place("the transformer", str(error.args[0])) from None
    for name, stack in stacks.items():
        yield name, joined(stack, weights)


def original_vae(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an AutoencoderKL under their original names. DdxError for one that has none."""
    last = max((int(name.split(".")[2]) for name in weights if name.startswith("decoder.up_blocks.")), default=0)
    for name in weights:
        new = _vae_name(name, last)
        value = weights[name]
        if re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$", new) and value.ndim == 2:
            value = value[:, :, None, None]
        yield _VAE_PREFIX + new, value


def _vae_name(name: str, last: int) -> str:
    layer, _, kind = name.rpartition(".")
    if re.fullmatch(r"((en|de)coder\.conv_(in|out)|(post_)?quant_conv)", layer):
        return name
    if found := re.fullmatch(r"(encoder|decoder)\.conv_norm_out", layer):
        return f"{found[1]}.norm_out.{kind}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)", layer):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{_shortcut(found[3])}.{kind}"
    if (found := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", layer)) and found[
        2
    ] in _VAE_ATTENTION:
        return f"{found[1]}.mid.attn_1.{_VAE_ATTENTION[found[2]]}.{kind}"
    if found := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(?:resnets\.(\d+)\.(.+)|downsamplers\.0\.conv)", layer):
        rest = "downsample.conv" if found[2] is None else f"block.{found[2]}.{_shortcut(found[3])}"
        return f"encoder.down.{found[1]}.{rest}.{kind}"
    if found := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)\.(.+)|upsamplers\.0\.conv)", layer):
        rest = "upsample.conv" if found[2] is None else f"block.{found[2]}.{_shortcut(found[3])}"
        return f"decoder.up.{last - int(found[1])}.{rest}.{kind}"
    raise _no_place("the autoencoder", name)


def _shortcut(rest: str) -> str:
    return "nin_shortcut" if rest == "conv_shortcut" else rest


def original_text(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a CLIP text encoder under their original names behind a family's prefix.

    OpenCLIP's encoders are those whose activation is not the quick one. DdxError for a tensor that has no place.
    """
    bare = {name.removeprefix("text_model."): name for name in weights}
    if config.get("hidden_act", "quick_gelu") == "quick_gelu":
        yield from ((f"{prefix}transformer.text_model.{name}", weights[full]) for name, full in bare.items())
        return
    for name, full in bare.items():
        if name == "text_projection.weight":
            yield f"{prefix}model.text_projection", weights[full].T.contiguous()
        elif name in _OPEN_CLIP_ENDS:
            yield f"{prefix}model.{_OPEN_CLIP_ENDS[name]}", weights[full]
        elif found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            block = f"{prefix}model.transformer.resblocks.{found[1]}"
            if found[2] in _OPEN_CLIP_LAYER:
                yield f"{block}.{_OPEN_CLIP_LAYER[found[2]]}.{found[3]}", weights[full]
            elif found[2] == "self_attn.q_proj":
                joined = (full.replace("q_proj", f"{letter}_proj") for letter in "qkv")
                yield f"{block}.attn.in_proj_{found[3]}", torch.cat([weights[each] for each in joined])
            elif found[2] not in ("self_attn.k_proj", "self_attn.v_proj"):
                raise _no_place("the text encoder", name)
        elif name != "embeddings.position_ids":  # of older versions of transformers, and no weight
            raise _no_place("the text encoder", name)


def _no_place(what: str, name: str) -> DdxError:
    return DdxError(
        f"{what} has {name}, which the original checkpoints have no place for",
        hint="--format diffusers writes a folder, which holds any student",
    )


def merged(pieces: Iterable[Iterator[tuple[str, Tensor]]]) -> dict[str, Tensor]:
    """Return all pieces as one dictionary. Two tensors of one name are a mistake of ours."""
    state: dict[str, Tensor] = {}
    for piece in pieces:
        for name, tensor in piece:
            assert name not in state, name
            state[name] = tensor
    return state
