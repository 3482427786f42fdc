"""A SANA transformer block whose residuals, gates, norms and modulations are fused.

The block is diffusers' `SanaTransformerBlock` by its attributes; its attentions and its feed-forward are called as the
modules they are, with whatever processors and hooks they have, and its parameters stay where they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddx.kernels.gated_residual_norm_modulate import gated_residual, gated_residual_norm_modulate


def sana_block_forward(
    block: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    timestep: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Tensor:
    """What `SanaTransformerBlock.forward` returns for these arguments; to be bound to an instance in its place.

    hidden_states: `[B, height * width, D]`; timestep: `[B, 6 * D]`, the modulation of this step; the attention mask is
    not used, as there. Under autocast the normalised states are written in its dtype, to which the projections that
    read them would cast them.
    """
    assert timestep is not None and height is not None and width is not None
    modulation = block.scale_shift_table[None] + timestep.reshape(len(hidden_states), 6, -1)
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)

    hidden_states, normalised = _add_norm(block.norm1, hidden_states, None, None, scale_msa, shift_msa)
    branch, gate = block.attn1(normalised), gate_msa
    if block.attn2 is not None:
        hidden_states, gate = gated_residual(hidden_states, branch, gate), None
        branch = block.attn2(
            hidden_states, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
        )
    hidden_states, normalised = _add_norm(block.norm2, hidden_states, branch, gate, scale_mlp, shift_mlp)
    image = block.ff(normalised.unflatten(1, (height, width)).permute(0, 3, 1, 2))
    return gated_residual(hidden_states, image.flatten(2, 3).permute(0, 2, 1), gate_mlp)


def _add_norm(
    norm: Any, residual: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """(the sum, its modulated norm). A norm with weights of its own is called as it is."""
    device = residual.device.type
    norm_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if norm.weight is None:
        return gated_residual_norm_modulate(residual, branch, gate, scale, shift, eps=norm.eps, norm_dtype=norm_dtype)
    r = residual if branch is None else gated_residual(residual, branch, gate)
    return r, norm(r) * (1 + scale) + shift
