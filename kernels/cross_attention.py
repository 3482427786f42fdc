"""SANA's cross-attention as a diffusers attention processor, and the dual of the whole module.

Beside diffusers' SanaAttnProcessor2_0: the key mask is broadcast and never repeated for every head, keys and values
come from one product where no gradient is asked for, queries and keys are normalised in one pass each, and nothing is
divided by 1. Attention itself is torch's SDPA, forward and backward.

Who calls the network may know more of its text than a mask says, see :class:`Text`: softmax over one key is 1, so rows
whose text is one token need no queries, no keys and no attention, but the value of that token.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddx.kernels import dispatch
from ddx.kernels.cross_attention_dual import cross_attention_dual
from ddx.kernels.dual_linear import dual_module, is_plain_linear
from ddx.kernels.rms_norm import is_rms_norm, rms_norm, rms_norm_dual


@dataclass
class Text:
    """What the caller knows of a network's text, for all of its cross-attentions.

    alone: so many rows, the first ones, have one token, the first one. kept: keys and values of an earlier pass with
    the same text, by attention and shape, to be used again by passes without gradients; None keeps none.
    """

    alone: int = 0
    kept: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] | None = None


class CrossAttentionProcessor:
    """Computes what diffusers' SanaAttnProcessor2_0 does, for the same `Attention` modules; it has no parameters."""

    def __init__(self, text: Text | None = None) -> None:
        self.text = text or Text()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return `[B, N, D]` for hidden_states `[B, N, D]`, encoder_hidden_states `[B, L, C]` (None: the former).

        attention_mask: None, or `[B, L]`, `[B, 1, L]` or `[B, 1, 1, L]`, booleans (True: the key is seen) or a bias.
        Raises ValueError for any other mask.
        """
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = _key_mask(attention_mask, text)
        alone = self.text.alone
        if alone == 0:
            return self._attend(attn, hidden_states, text, mask)
        single: Tensor = _out(attn, attn.to_v(text[:alone, :1]))
        mask = None if mask is None else mask[alone:]
        others = self._attend(attn, hidden_states[alone:], text[alone:], mask)
        return torch.cat([single.to(others.dtype).expand(-1, others.shape[1], -1), others])

    def _attend(self, attn: Any, hidden_states: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        query = _normalised(attn.norm_q, attn.to_q(hidden_states))
        key, value = self._read(attn, text)
        if mask is not None:
            mask = mask[:, None, None, :] if mask.dtype == torch.bool else mask[:, None, None, :].to(query.dtype)
        q, k, v = (_heads(attn, part).transpose(1, 2) for part in (query, key, value))
        # Of SDPA's backends only MATH has forward-mode derivatives.
        with sdpa_kernel(SDPBackend.MATH) if dispatch.in_forward_ad() else nullcontext():
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return _out(attn, attended.transpose(1, 2).flatten(2).to(query.dtype))

    def _read(self, attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys, normalised, and values."""
        kept = None if torch.is_grad_enabled() else self.text.kept
        place = id(attn), text.shape
        if kept is not None and place in kept:
            return kept[place]
        key, value = _keys_and_values(attn, text)
        found = _normalised(attn.norm_k, key), value
        if kept is not None:
            kept[place] = found
        return found


def _out(attn: Any, attended: Tensor) -> Tensor:
    y: Tensor = attn.to_out[1](attn.to_out[0](attended))
    return y if attn.rescale_output_factor == 1 else y / attn.rescale_output_factor


def cross_attention_dual_forward(
    attn: Any, hidden_states: Tensor, tangent: Tensor, encoder_hidden_states: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(the module's output, its tangent for the tangent of hidden_states), both `[B, N, D]`; without gradients.

    Shapes, mask and errors are those of :class:`CrossAttentionProcessor`; the text is constant.
    """
    key_mask = _key_mask(mask, encoder_hidden_states)
    query, moved = _normalised_dual(attn.norm_q, *dual_module(attn.to_q, hidden_states, tangent))
    key, value = _keys_and_values(attn, encoder_hidden_states)
    key = _normalised(attn.norm_k, key)
    # Under autocast some norms answer in float32; SDPA would be given its inputs in the narrower dtype.
    q, dq, k, v = (_heads(attn, part.to(value.dtype)) for part in (query, moved, key, value))
    y, dy = (part.flatten(2) for part in cross_attention_dual(q, dq, k, v, key_mask))
    for module in attn.to_out:
        y, dy = dual_module(module, y, dy)
    factor = attn.rescale_output_factor
    return (y, dy) if factor == 1 else (y / factor, dy / factor)


def _key_mask(mask: Tensor | None, text: Tensor) -> Tensor | None:
    """Return the mask as `[B, L]`, boolean or float."""
    if mask is None:
        return None
    batch, length = text.shape[:2]
    if tuple(mask.shape) not in ((batch, length), (batch, 1, length), (batch, 1, 1, length)):
        raise ValueError(
            f"attention_mask must be [{batch}, {length}], with axes of 1 between if any, got {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attention_mask must hold booleans or floats, got {mask.dtype}")
    return mask.reshape(batch, length)


def _heads(attn: Any, x: Tensor) -> Tensor:
    """`[B, N, D]` as `[B, N, H, d]`."""
    return x.view(*x.shape[:2], attn.heads, -1)


def _keys_and_values(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    """Both `[B, L, D]`: halves of one product, where the two layers are no more than their weights.

    Two products where gradients pass: a joined weight would be kept for them, half an activation at 512 pixels and
    16 images, and those of the halves would have to be joined by a copy.
    """
    layers = (attn.to_k, attn.to_v)
    plain = all(map(is_plain_linear, layers)) and (attn.to_k.bias is None) == (attn.to_v.bias is None)
    if not plain or (
        torch.is_grad_enabled()
        and any(x.requires_grad for x in (text, *attn.to_k.parameters(), *attn.to_v.parameters()))
    ):
        return attn.to_k(text), attn.to_v(text)
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if attn.to_k.bias is None else torch.cat([layer.bias for layer in layers])
    key, value = F.linear(text, weight, bias).split([layer.out_features for layer in layers], dim=-1)
    return key, value


def _normalised(norm: Any, x: Tensor) -> Tensor:
    if norm is None:
        return x
    if is_rms_norm(norm, x.shape[-1]):
        return rms_norm(x, norm.weight, eps=norm.eps)
    y: Tensor = norm(x)
    return y


def _normalised_dual(norm: Any, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    if norm is None:
        return x, dx
    if is_rms_norm(norm, x.shape[-1]):
        return rms_norm_dual(x, dx, norm.weight, eps=norm.eps)
    return dual_module(norm, x, dx)
