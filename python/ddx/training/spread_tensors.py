"""Tensors of which each rank holds a share (DTensors), among those that every rank holds whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ddx.training.distributed import Ranks

SHARES = "shard"  # the dimension of a mesh over which tensors are spread


def local(value: Tensor) -> Tensor:
    """Return this rank's share of a tensor, live; a tensor that is not spread is its own."""
    return value.to_local() if isinstance(value, DTensor) else value


def locals_of(values: Iterable[Tensor]) -> list[Tensor]:
    """Return this rank's share of each tensor."""
    return [local(value) for value in values]


def reshard(network: nn.Module) -> None:
    """Let go of the weights around the blocks of a network that is spread: its parameters are shares again."""
    if isinstance(network, FSDPModule):
        network.reshard()


def is_spread(values: Iterable[Tensor]) -> bool:
    """Whether any of these tensors is spread."""
    return any(isinstance(value, DTensor) for value in values)


def summed(number: Tensor, over: Sequence[Tensor]) -> Tensor:
    """Return the sum of a number over the ranks that hold the shares of these tensors; it is itself if none does."""
    spread = next((value for value in over if isinstance(value, DTensor)), None)
    if spread is not None:
        dist.all_reduce(number, group=spread.device_mesh.get_group(SHARES))
    return number


def share_beside(share: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's share of a tensor with a row for each of a parameter's as one that is spread like it."""
    if not isinstance(parameter, DTensor):
        return share
    shape = torch.Size((parameter.shape[0], *share.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(share, mesh, placements, run_check=False, shape=shape, stride=stride)


def spread_beside(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor with a row for each of a parameter's spread like it; every rank has all of `value`."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """Return all of a tensor on every rank, which must ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return whole tensors on the first rank's host, and nothing on the others, which must ask too: one at a time."""
    kept: dict[str, Tensor] = {}
    for name, value in tensors.items():
        found = whole(value.detach())
        if ranks.is_first:
            kept[name] = found.cpu()
        del found
    return kept
