"""Where to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddx.errors import UsageError

if TYPE_CHECKING:
    import torch


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device called `name`; "auto" is the GPU if there is one, and a GPU without a number this rank's.

    Raises UsageError for a name that torch does not know, and for a GPU where it sees none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device = {name!r} is not a device", hint="--device cpu, cuda or cuda:1") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UsageError(f"device = {name}, but torch sees no GPU", hint="--device cpu, or run `ddx doctor`")
    return torch.device("cuda", local_rank) if device.index is None else device


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor of the host on `device`, without waiting for it: to a GPU through pinned memory.

    The copy is ordered before what is computed with it. A tensor that is on `device` already is returned as it is.
    """
    import torch

    place = torch.device(device)
    if place.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(place, non_blocking=True)
