"""SANA's linear self-attention as a module: one projection, :func:`relu_linear_attention`, and the way out.

The processor stands in for diffusers' `SanaLinearAttnProcessor2_0` on the `Attention` modules of a SANA transformer,
whose parameters it reads where they are. A projection that is more than a plain linear layer (LoRA, hooks) is called
as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddx.kernels.dual_linear import dual_linear, dual_module, is_plain_linear
from ddx.kernels.relu_linear_attention import relu_linear_attention
from ddx.kernels.relu_linear_attention_dual import relu_linear_attention_dual
from ddx.kernels.rms_norm import is_rms_norm

FLOAT16_MAX = 65504.0


class ReluLinearAttentionProcessor:
    """Computes what diffusers' SanaLinearAttnProcessor2_0 does, for the same `Attention` modules.

    It has no parameters. The joined weights of frozen projections are kept until one of them changes.
    """

    def __init__(self) -> None:
        self._joined: tuple[Any, Tensor, Tensor | None] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Self-attention of hidden_states ``[B, N, D]``; the other two are not used, as there."""
        projections = attn.to_q, attn.to_k, attn.to_v
        if all(is_plain_linear(projection) for projection in projections):
            weight, bias = self._weights(projections)
            qkv = F.linear(hidden_states, weight, bias).unflatten(-1, (3, attn.heads, -1))
        else:
            parts = [projection(hidden_states).unflatten(-1, (attn.heads, -1)) for projection in projections]
            qkv = torch.stack(parts, dim=2)
        weights = _norm_weights(attn)
        if weights is None:
            q, k, v = qkv.unbind(2)
            qkv = torch.stack([_norm(attn.norm_q, q), _norm(attn.norm_k, k), v], dim=2)
        output: Tensor = relu_linear_attention(qkv, **(weights or {})).flatten(2)
        output = attn.to_out[1](attn.to_out[0](output))
        if hidden_states.dtype == torch.float16:  # as which SANA-600M was trained, with this clip
            output = output.clip(-FLOAT16_MAX, FLOAT16_MAX)
        return output

    def __deepcopy__(self, memo: Any) -> ReluLinearAttentionProcessor:
        """A copy of a network must not keep the weights of the first."""
        return ReluLinearAttentionProcessor()

    def _weights(self, projections: tuple[nn.Linear, ...]) -> tuple[Tensor, Tensor | None]:
        """The weights ``[3 D, D]`` and biases of the three as one; made anew where they may have a gradient."""
        if torch.compiler.is_compiling():
            return _join(projections)
        parts = [p for projection in projections for p in (projection.weight, projection.bias) if p is not None]
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            self._joined = None
            return _join(projections)
        state = [(part.data_ptr(), part._version, part.dtype, part.device) for part in parts]
        if self._joined is None or self._joined[0] != state:
            with torch.no_grad():
                self._joined = state, *_join(projections)
        return self._joined[1], self._joined[2]


def linear_attention_dual_forward(attn: Any, hidden_states: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """(the module's output, its tangent for the tangent of hidden_states), both ``[B, N, D]``; without gradients."""
    projections = attn.to_q, attn.to_k, attn.to_v
    if all(is_plain_linear(projection) for projection in projections):
        qkv, dqkv = dual_linear(hidden_states, tangent, *_join(projections))
        qkv, dqkv = (value.unflatten(-1, (3, attn.heads, -1)) for value in (qkv, dqkv))
    else:
        pairs = [dual_module(projection, hidden_states, tangent) for projection in projections]
        qkv, dqkv = (
            torch.stack([part.unflatten(-1, (attn.heads, -1)) for part in parts], dim=2)
            for parts in zip(*pairs, strict=True)
        )
    weights = _norm_weights(attn)
    if weights is None:
        (q, k, v), (dq, dk, dv) = qkv.unbind(2), dqkv.unbind(2)
        q, dq = torch.func.jvp(lambda q: _norm(attn.norm_q, q), (q,), (dq,))  # type: ignore[misc]
        k, dk = torch.func.jvp(lambda k: _norm(attn.norm_k, k), (k,), (dk,))  # type: ignore[misc]
        qkv, dqkv = torch.stack([q, k, v], dim=2), torch.stack([dq, dk, dv], dim=2)
    o, do = relu_linear_attention_dual(qkv, dqkv, **(weights or {}))
    o, do = dual_module(attn.to_out[0], o.flatten(2), do.flatten(2))
    return dual_module(attn.to_out[1], o, do)


def _join(projections: tuple[nn.Linear, ...]) -> tuple[Tensor, Tensor | None]:
    """One weight and one bias for the three projections, which have biases or have none."""
    weight: Tensor = torch.cat(tuple(projection.weight for projection in projections))
    if all(projection.bias is None for projection in projections):
        return weight, None
    width = [projection.out_features for projection in projections]
    biases: list[Tensor] = [
        projection.bias if projection.bias is not None else weight.new_zeros(rows)
        for projection, rows in zip(projections, width, strict=True)
    ]
    return weight, torch.cat(biases)


def _norm_weights(attn: Any) -> dict[str, Any] | None:
    """The arguments for the norms of queries and keys: none without norms, None for norms of another kind."""
    if attn.norm_q is None and attn.norm_k is None:
        return {}
    width = attn.to_k.out_features
    if not (is_rms_norm(attn.norm_q, width) and is_rms_norm(attn.norm_k, width)) or attn.norm_q.eps != attn.norm_k.eps:
        return None
    return {"q_weight": attn.norm_q.weight, "k_weight": attn.norm_k.weight, "norm_eps": attn.norm_q.eps}


def _norm(norm: Any, x: Tensor) -> Tensor:
    """A norm over all heads of ``[B, N, H, d]`` called as the module that it is, its result in x's dtype."""
    if norm is None:
        return x
    normalised: Tensor = norm(x.flatten(2)).view_as(x)
    return normalised.to(x.dtype)
