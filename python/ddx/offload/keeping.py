"""Where the components of a pipeline are kept while it draws or encodes.

    device    all of them on the device, for good
    together  whole, all that are kept so at once
    turns     whole, each when its turn comes
    blocks    the weights of one block at a time, by diffusers' group offloading
    leaves    the weights of one layer at a time, likewise

On a GPU the next block or layer comes in on a stream of its own while one computes. Nothing of this changes a
picture, a latent or an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import nn

from ddx.offload.maps import maps_on_host
from ddx.offload.tables import drop_head, keep_tables
from ddx.offload.turns import Turns, tensors_of

DEVICE, TOGETHER, TURNS, BLOCKS, LEAVES = "device", "together", "turns", "blocks", "leaves"
_ENCODING = ("encoder", "quant_conv")  # what an autoencoder decodes without


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How each component is kept, by its name in the pipeline, and what else saves memory.

    coding: what the autoencoder is for, "decode" or "encode"; its other half stays away. maps: bytes that one operation
    of it takes, larger maps wait on the host (None: all are on the device).
    fp8: whether the denoiser's weights are stored in 8 bits. tables: whether the tables of embeddings of an offloaded
    text encoder stay on the host, and a head that nobody reads stays away. limit: bytes that torch's allocator may
    take of a GPU (None: all).
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    coding: str = "decode"
    maps: int | None = None
    fp8: bool = False
    tables: bool = True
    limit: int | None = None

    @property
    def all_on_device(self) -> bool:
        """Whether nothing is offloaded."""
        return self.maps is None and set(self.parts.values()) <= {DEVICE}


def keep(components: Mapping[str, nn.Module], keeping: Keeping, device: torch.device) -> Turns:
    """Keep the networks of a pipeline as `keeping` says, in place; return who takes turns. They are on the host."""
    turns = Turns(device)
    together = [module for part, module in components.items() if keeping.parts[part] == TOGETHER]
    denoiser = next((part for part in ("transformer", "unet") if part in components), None)
    if keeping.fp8 and denoiser is not None:
        to_8_bits(components[denoiser])
    for part, module in components.items():
        how = keeping.parts[part]
        if how == DEVICE:
            module.to(device)
        if part == "vae":
            _keep_autoencoder(module, keeping, device, turns)
        elif how == TOGETHER:
            turns.calls(module, together)
        elif how == TURNS:
            turns.calls(module, (module,))
        elif how != DEVICE:
            if keeping.tables and part.startswith("text_encoder"):
                keep_tables(module)
                drop_head(module)
            _offload(module, how, device)
            turns.calls(module, ())
    return turns


def to_8_bits(denoiser: Any) -> None:
    """Store the weights of a denoiser in float8 (e4m3), and widen each layer's when it computes."""
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=denoiser.dtype)


def _offload(module: nn.Module, how: str, device: torch.device, **more: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level" if how == BLOCKS else "leaf_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
        **more,
    )


def coding_parts(vae: nn.Module, coding: str) -> list[nn.Module]:
    """Return the parts of an autoencoder that "encode", or "decode"."""
    return [child for name, child in vae.named_children() if (name in _ENCODING) == (coding == "encode")]


def _keep_autoencoder(vae: Any, keeping: Keeping, device: torch.device, turns: Turns) -> None:
    """An autoencoder is called by its `decode` or `encode`, which no hook of a forward pass sees."""
    how, maps, parts = keeping.parts["vae"], keeping.maps, coding_parts(vae, keeping.coding)
    half = vae.get_submodule(f"{keeping.coding}r")
    if how == LEAVES:
        _offload(half, LEAVES, device, exclude_kwargs=getattr(vae, "_skip_keys", None))
        parts = [child for child in parts if child is not half]
    code = getattr(vae, keeping.coding)

    def code_in_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        if how != DEVICE:
            turns.enter(parts)
        try:
            with nullcontext() if maps is None else maps_on_host(device, maps, tensors_of((vae,))):
                return code(*args, **kwargs)
        except torch.OutOfMemoryError as error:  # which SANA's pipeline takes for advice, and goes on without a picture
            raise MemoryError(str(error)) from error

    setattr(vae, keeping.coding, MethodType(code_in_turn, vae))


def run_on(pipeline: Any, device: torch.device) -> None:
    """Tell a pipeline where it computes: what it sees of its parts may be on the host."""
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"_execution_device": property(lambda self: device)})
