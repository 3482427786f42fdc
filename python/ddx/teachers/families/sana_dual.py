"""The SANA transformer on dual numbers: one pass that gives its output and the derivative of it in one direction.

``torch.func.jvp`` computes the same, but runs three matrix products for a linear where two are enough, takes the
plainest softmax attention, which holds all scores, and cannot see through our kernels. Here every operation of the
blocks has its own dual form; what is small (the embeddings of patches and time, the last layer) goes through
``func.jvp``. The text does not depend on the input, so nothing of it has a tangent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddx.kernels.cross_attention import cross_attention_dual_forward
from ddx.kernels.dual_linear import dual_module
from ddx.kernels.gated_residual_norm_modulate_dual import (
    gated_residual_dual,
    gated_residual_norm_modulate_dual,
    norm_modulate_dual,
)
from ddx.kernels.glumbconv import glumbconv_dual_forward
from ddx.kernels.linear_attention import linear_attention_dual_forward
from ddx.teachers.extra_input import moved_inputs
from ddx.teachers.gathered import gather, gathered

Dual = tuple[Tensor, Tensor]  # a value and its tangent


@torch.no_grad()
def dual_forward(
    network: nn.Module,
    x: Tensor,
    dx: Tensor,
    timestep: Tensor,
    dtimestep: Tensor,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor | None = None,
    guidance: Tensor | None = None,
) -> Dual:
    """(output, its derivative along (dx, dtimestep)) of a ``SanaTransformer2DModel``, ``[B, C, h, w]``; no gradients.

    The arguments are those of the model's forward; dx and dtimestep are shaped as x and timestep, which are floating.
    Hooks on blocks, attentions and feed-forwards do not run; those inside the embeddings do. Weights that are spread
    over processes are gathered as in a forward pass, a block at a time.
    """
    gather(network)
    model: Any = network
    batch, _, height, width = x.shape
    patch = int(model.config.patch_size)
    rows, columns = height // patch, width // patch
    hidden = _jvp(model.patch_embed, (x,), (dx,))
    dtype = hidden[0].dtype

    def time_embedding(timestep: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
        more = {"batch_size": batch} if guidance is None else {"guidance": guidance}
        with moved_inputs(network, move):
            modulation, embedded = model.time_embed(timestep, hidden_dtype=dtype, **more)
        return modulation, embedded

    move = timestep.new_zeros(())
    (modulation, embedded), (dmodulation, dembedded) = _jvp(
        time_embedding, (timestep, move), (dtimestep, torch.ones_like(move))
    )
    text = model.caption_projection(encoder_hidden_states).view(batch, -1, hidden[0].shape[-1])
    text = model.caption_norm(text)
    mask = _bias(encoder_attention_mask, dtype)
    for block in model.transformer_blocks:
        with gathered(block):
            hidden = _block(block, hidden, (modulation, dmodulation), text, mask, rows, columns)

    table = model.scale_shift_table[None]
    shift, scale = (table + embedded[:, None]).chunk(2, dim=1)
    dshift = dscale = dembedded[:, None]
    hidden = norm_modulate_dual(
        hidden[0],
        scale,
        shift,
        hidden[1],
        dscale,
        dshift,
        eps=model.norm_out.norm.eps,
        norm_dtype=_norm_dtype(hidden[0]),
    )
    output, tangent = dual_module(model.proj_out, *hidden)

    def unpatchify(tokens: Tensor) -> Tensor:
        split = tokens.reshape(batch, rows, columns, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return split.reshape(batch, -1, rows * patch, columns * patch)

    return unpatchify(output), unpatchify(tangent)


def _block(
    block: Any, hidden: Dual, modulation: Dual, text: Tensor, mask: Tensor | None, rows: int, columns: int
) -> Dual:
    """One ``SanaTransformerBlock`` on tokens ``[B, N, D]`` with the modulation ``[B, 6 D]`` of the time."""
    batch = len(hidden[0])
    table = block.scale_shift_table[None] + modulation[0].reshape(batch, 6, -1)
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
    dtable = modulation[1].reshape(batch, 6, -1).chunk(6, dim=1)
    dshift_msa, dscale_msa, dgate_msa, dshift_mlp, dscale_mlp, dgate_mlp = dtable

    normed = norm_modulate_dual(
        hidden[0],
        scale_msa,
        shift_msa,
        hidden[1],
        dscale_msa,
        dshift_msa,
        eps=block.norm1.eps,
        norm_dtype=_norm_dtype(hidden[0]),
    )
    branch = linear_attention_dual_forward(block.attn1, *normed)
    hidden = gated_residual_dual(hidden[0], branch[0], gate_msa, hidden[1], branch[1], dgate_msa)

    branch = cross_attention_dual_forward(block.attn2, *hidden, text, mask)
    added, dadded, normed = _add_norm(block.norm2, hidden, branch, (scale_mlp, shift_mlp), (dscale_mlp, dshift_mlp))
    hidden = added, dadded

    pictures = [value.unflatten(1, (rows, columns)).permute(0, 3, 1, 2) for value in normed]
    branch = glumbconv_dual_forward(block.ff, *pictures)
    branch = branch[0].flatten(2, 3).permute(0, 2, 1), branch[1].flatten(2, 3).permute(0, 2, 1)
    return gated_residual_dual(hidden[0], branch[0], gate_mlp, hidden[1], branch[1], dgate_mlp)


def _add_norm(
    norm: Any, hidden: Dual, branch: Dual, modulation: Dual, dmodulation: Dual
) -> tuple[Tensor, Tensor, Dual]:
    """The sum, its tangent, and its modulated norm with its own. A norm with weights is called as it is."""
    if norm.weight is None:
        r, y, dr, dy = gated_residual_norm_modulate_dual(
            hidden[0], branch[0], None, *modulation, hidden[1], branch[1], None, *dmodulation,
            eps=norm.eps, norm_dtype=_norm_dtype(hidden[0]),
        )  # fmt: skip
        return r, dr, (y, dy)
    r, dr = gated_residual_dual(hidden[0], branch[0], None, hidden[1], branch[1])
    y, dy = _jvp(lambda r, scale, shift: norm(r) * (1 + scale) + shift, (r, *modulation), (dr, *dmodulation))
    return r, dr, (y, dy)


def _jvp(function: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    return torch.func.jvp(function, primals, tangents)


def _norm_dtype(hidden: Tensor) -> torch.dtype:
    """What norms are written in: autocast's dtype, since a matrix product comes next."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask ``[B, L]`` that keeps where it is 1 as the model adds it to the scores, ``[B, 1, L]``."""
    if mask is None or mask.ndim != 2:
        return mask
    return ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)
