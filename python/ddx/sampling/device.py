"""Where pictures are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddx.errors import UsageError

if TYPE_CHECKING:
    import torch


def drawing_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the GPU if there is one. UsageError for one that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device = {name!r} is not a device", hint="--device cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device = {name}, but torch sees no GPU", hint="--device cpu, or run `ddx doctor`")
    return device
