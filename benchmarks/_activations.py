"""How much a forward pass keeps for its backward pass, counted on tensors without data: real sizes, and no GPU.

    kept = block_activations(Size())                            # diffusers' own block
    print(kept.total_bytes / activation_bytes(Size()))          # in activations X = B N D
    saved_for_backward(lambda: anything(x), apart_from=anything.parameters())

Memory counts once however often it is saved or viewed. Attention is torch's fused one, as a GPU would choose it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ddx.bench.case import Size
from ddx.bench.steps import sana_transformer
from ddx.kernels import dispatch


@dataclass(frozen=True)
class Saved:
    """One piece of memory that is kept, as the tensor looked that first needed it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    num_bytes: int


@dataclass(frozen=True)
class Activations:
    """Everything that one forward pass keeps."""

    saved: tuple[Saved, ...]

    @property
    def total_bytes(self) -> int:
        """The bytes of all of it."""
        return sum(entry.num_bytes for entry in self.saved)


def saved_for_backward(forward: Callable[[], Any], *, apart_from: Iterable[Tensor] = ()) -> Activations:
    """Run `forward` once and return what its backward pass would need, but for the memory of `apart_from`.

    That is meant for parameters, and for inputs that exist anyhow. Works on fake tensors and on real ones.
    """
    known = {_memory(tensor) for tensor in apart_from}
    found: dict[int, Saved] = {}
    held = []  # so that no two pieces of memory get the same address

    def pack(tensor: Tensor) -> Tensor:
        address = _memory(tensor)
        if address not in known and address not in found:
            found[address] = Saved(tuple(tensor.shape), tensor.dtype, tensor.untyped_storage().nbytes())
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        outputs = forward()
    del outputs
    return Activations(tuple(found.values()))


def block_activations(
    size: Size,
    *,
    dtype: torch.dtype = torch.bfloat16,
    prepare: Callable[[nn.Module], Any] | None = None,
    trained: bool = True,
) -> Activations:
    """Return what one SANA block at this size keeps; the text, which all blocks share, is not counted.

    `prepare` gets the model, which has this one block, and may put other operations into it; they take their kernels'
    path. With `trained` false, nothing but the block's input gets a gradient, as in a frozen teacher.
    """
    with fake_tensors(dtype):
        model = sana_transformer(size, layers=1, text_width=64)
        model.requires_grad_(trained)
        if prepare is not None:
            prepare(model)
        block: Any = model.transformer_blocks[0]
        inputs = block_inputs(size, trained=trained)
        text = [inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]]
        return saved_for_backward(lambda: block(**inputs), apart_from=[*model.parameters(), *model.buffers(), *text])


def activation_bytes(size: Size, dtype: torch.dtype = torch.bfloat16) -> int:
    """The unit X: the bytes of one activation `[B, N, D]`."""
    return size.activation * dtype.itemsize


def block_inputs(size: Size, *, trained: bool = True) -> dict[str, Any]:
    """Return what the transformer hands to one of its blocks."""
    text = (size.batch, size.text_tokens, size.width)
    return {
        "hidden_states": torch.zeros(size.batch, size.tokens, size.width, requires_grad=True),
        "encoder_hidden_states": torch.zeros(text, requires_grad=trained),
        "encoder_attention_mask": torch.zeros(size.batch, 1, size.text_tokens),
        "timestep": torch.zeros(size.batch, 6 * size.width, requires_grad=trained),
        "height": size.side,
        "width": size.side,
    }


@contextmanager
def fake_tensors(dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Inside, tensors have shapes and no data, new ones have this dtype, and operations take their kernels' path.

    They are on a fake CPU: a fake GPU would choose another attention than a real one does.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode(), mock.patch.object(dispatch, "backend", lambda device_type: "triton"):
            yield
    finally:
        torch.set_default_dtype(before)


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
