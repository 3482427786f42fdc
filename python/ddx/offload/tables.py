"""Tables of embeddings that stay on the host: a text looks up a few hundred of their rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGE = 16 * 2**20  # bytes: from here on a table is not moved


class HostTable(nn.Module):
    """An embedding whose table is on the host; gives its rows where the ids are.

    The table is no parameter of it, so that nothing moves it to a device.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: no submodule

    @property
    def weight(self) -> Tensor:
        """The table."""
        return self._embedding[0].weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids` on their device."""
        rows: Tensor = self._embedding[0](ids.to("cpu"))
        return rows.to(ids.device)


def keep_tables(module: nn.Module, *, least: int = LARGE) -> int:
    """Keep the embedding tables of `module` from `least` bytes on the host, in place; return their bytes."""
    made: dict[nn.Module, HostTable] = {}
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Embedding) and child.weight.numel() * child.weight.element_size() >= least:
                made.setdefault(child, HostTable(child))
                setattr(owner, name, made[child])
    weights = {id(table.weight): table.weight for table in made.values()}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def host_tables(module: nn.Module) -> set[torch.Tensor]:
    """Return the tables of `module` that stay on the host."""
    return {child.weight for child in module.modules() if isinstance(child, HostTable)}


class _NoHead(nn.Module):
    """In the place of a layer that gives scores over a vocabulary, which nobody asks for."""

    def forward(self, states: Tensor) -> Tensor:
        return states[..., :0]


def drop_head(encoder: nn.Module) -> None:
    """Take away what a language model has beside its layers: as a text encoder it gives hidden states alone.

    Its head would bring the whole table to the device, and a score a token and word; a tower for pictures waits for
    none.
    """
    if hasattr(encoder, "lm_head"):
        encoder.lm_head = _NoHead()
    for owner in list(encoder.modules()):
        if isinstance(getattr(owner, "visual", None), nn.Module):
            owner.visual = nn.Module()
