"""Networks spread over the ranks by FSDP2: each rank holds a share of every weight, gradient, moment and average.

    full     shares over all ranks
    hybrid   shares over the ranks of a machine, the same on every machine (HSDP)

A block is whole on a rank while it computes, forwards or backwards. The weights around the blocks are whole from a
network's first pass of a micro-batch to the end of the backward pass: FSDP2 gathers them for one that begins at the
network's output, and some begin at the features of a block. Gradients come as shares out of every micro-batch, so no
network's are ever whole. Weights are gathered as they are stored, and autocast casts them where they are used: a step
is that of a run without shares, but for the order of sums.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ddx.errors import UsageError
from ddx.teachers.blocks import blocks_of
from ddx.training.distributed import Ranks
from ddx.training.spread_tensors import SHARES, reshard

COPIES = "replicate"


@dataclass(frozen=True)
class Sharding:
    """Over which ranks networks are spread."""

    mesh: DeviceMesh

    def shard(self, network: nn.Module) -> nn.Module:
        """Spread a network's weights, in place; returns it. Optimisers and lists of parameters are made afterwards."""
        settings: dict[str, Any] = {
            "mesh": self.mesh,
            "mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False),  # times stay float32
        }
        listed = {id(block) for part in network.modules() if isinstance(part, nn.ModuleList) for block in part}
        # a view that is changed in place would lose its hook: no method changes a prediction
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view")
        for block in blocks_of(network):
            if id(block) in listed:  # a class may name its embedding of patches too, which is no block
                fully_shard(block, reshard_after_forward=True, **settings)
        spread = fully_shard(network, reshard_after_forward=False, **settings)
        spread.set_reshard_after_backward(False, recurse=False)
        return network


def make_sharding(kind: str, ranks: Ranks) -> Sharding | None:
    """Return how networks are spread; None for "none", and for one process. UsageError where machines are not equal."""
    if kind == "none" or ranks.world == 1:
        return None
    if kind == "full":
        return Sharding(init_device_mesh(ranks.device.type, (ranks.world,), mesh_dim_names=(SHARES,)))
    inside = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))
    if ranks.world % inside:
        raise UsageError(
            f"shard = hybrid: {ranks.world} processes are not a multiple of the {inside} on this machine",
            hint="start as many processes on every machine, or --shard full",
        )
    shape = (ranks.world // inside, inside)
    return Sharding(init_device_mesh(ranks.device.type, shape, mesh_dim_names=(COPIES, SHARES)))


def share_weights(network: nn.Module, names: Mapping[str, str], base: nn.Module) -> None:
    """Let a spread network hold the shares that `base` holds, under other names; `names` gives those in `base` by own.

    Of frozen weights, before the first pass.
    """
    held = dict(base.named_parameters())
    shares = {own: nn.Parameter(held[theirs].detach(), requires_grad=False) for own, theirs in names.items()}
    network.load_state_dict(shares, strict=False, assign=True)


def rest(networks: Iterable[nn.Module]) -> None:
    """Let networks hold their shares alone, when the backward pass is over.

    The record of passes that FSDP2 keeps for one is dropped: without any it would grow for the whole run.
    """
    for network in networks:
        reshard(network)
        for module in network.modules():
            state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
            order = getattr(getattr(state, "_comm_ctx", None), "post_forward_order", None)
            if order is not None:
                for group in order:
                    group._post_forward_indices.clear()
                order.clear()
