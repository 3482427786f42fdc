"""Components that take turns on a device: one comes in when it is called, and the one before it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class Turns:
    """Who is on the device. Weights do not change while pictures are drawn: what goes is dropped, and never copied."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._here: tuple[nn.Module, ...] = ()
        self._hosts: list[tuple[Tensor, Tensor]] = []  # a tensor of a module, and its values on the host

    def enter(self, modules: Iterable[nn.Module]) -> None:
        """Bring these in, and send those that are here away; none only sends away."""
        modules = tuple(modules)
        if modules and modules == self._here:
            return
        for tensor, host in self._hosts:
            assign(tensor, host)
        self._hosts = []
        if self._here and self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._here = modules
        for tensor in tensors_of(modules):
            host = tensor.data
            self._hosts.append((tensor, host))
            assign(tensor, host.to(self.device))

    def calls(self, root: nn.Module, modules: Iterable[nn.Module]) -> None:
        """Let `modules` come in whenever `root` is called, or the body of a language model without its head."""
        taken = tuple(modules)
        for called in dict.fromkeys((root, getattr(root, "base_model", root))):
            called.register_forward_pre_hook(lambda *_: self.enter(taken))


def assign(tensor: Tensor, values: Tensor) -> None:
    """Give a parameter or buffer other values, on whatever device."""
    tensor.data = values


def tensors_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Yield the parameters and buffers of some modules, each once."""
    found: dict[int, Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            found.setdefault(id(tensor), tensor)
    yield from found.values()
