"""The blocks that a denoiser of diffusers is made of."""

from __future__ import annotations

from torch import nn


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network, the innermost that its class names as such, in the order of its modules."""
    names = {*(getattr(network, "_no_split_modules", None) or ()), *(getattr(network, "_repeated_blocks", None) or ())}
    found = [module for module in network.modules() if type(module).__name__ in names]
    return [m for m in found if not any(type(child).__name__ in names for child in m.modules() if child is not m)]
