"""Where to compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    if _listening is not None and tensor.device.type == "cpu" and place.type != "cpu":
        return _listening.send(tensor, place)
    return _copied(tensor, place)


def _copied(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    if place.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(place, non_blocking=True)


class Sends:
    """What a piece of code sends to a device, in its order: it must be the same in every run of the code.

    The first run's copies are given again in later ones, so that a recording of the code holds no copy from the host.
    """

    def __init__(self) -> None:
        self._made: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._next = 0
        self.differs = False  # whether a run sent something else than the first one

    @contextmanager
    def of_a_run(self) -> Iterator[None]:
        """Listen to :func:`send` within."""
        global _listening
        self._first, self._next = not self._made and not self.differs, 0
        before, _listening = _listening, self
        try:
            yield
        finally:
            _listening = before
        self.differs = self.differs or self._next != len(self._made)

    def send(self, tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
        """Return the copy of the first run, or a new one where this run's tensor is another."""
        if self._first:
            self._made.append((tensor.clone(), _copied(tensor, place)))
            self._next += 1
            return self._made[-1][1]
        found = self._made[self._next] if self._next < len(self._made) else None
        self._next += 1
        if found is not None and _equal(found[0], tensor):
            return found[1]
        self.differs = True
        return _copied(tensor, place)


_listening: Sends | None = None


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    return one.dtype == other.dtype and torch.equal(one, other)
