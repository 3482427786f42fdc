"""How a diffusers pipeline is called by a student: without classifier-free guidance, its text encoded or not.

This module needs no torch, so that a dry run and a model card are quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ddx.teachers.condition import Condition


@dataclass(frozen=True, kw_only=True)
class PipelineCall:
    """The arguments that differ between families.

    guidance_off: what turns classifier-free guidance off. embedded_guidance: the network takes `guidance_scale` itself,
    so a student is called with its own; `guidance_off` is then for one whose guidance is not known. always: further
    arguments of every call.

    null_prompt: the negative prompt of a pipeline that guides only when it is given one.

    tokens, mask, pooled: the arguments that take encoded text; None where there is none of it. token_lists: tokens go
    in as a list of `[L, D]`.

    seeds_steps: whether the pipeline hands its generator to the scheduler; where it does not, fresh noise of a later
    step would come from torch's global generator. half_alone: whether float16 is for the denoiser alone; its other
    parts then run in bfloat16.
    """

    guidance_off: Mapping[str, float] = field(default_factory=lambda: {"guidance_scale": 1.0})
    embedded_guidance: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)
    null_prompt: str | None = None
    tokens: str = "prompt_embeds"
    mask: str | None = None
    pooled: str | None = None
    token_lists: bool = False
    seeds_steps: bool = True
    half_alone: bool = False

    def guidance(self, scale: float | None) -> dict[str, float]:
        """Return the arguments for a student whose guidance is `scale`, where that is known."""
        if self.embedded_guidance and scale is not None:
            return {"guidance_scale": scale}
        return dict(self.guidance_off)

    def guided(self, scale: float) -> dict[str, Any]:
        """Return the arguments for a teacher that draws with guidance `scale`, which is 1 without any."""
        if self.embedded_guidance:
            return {"guidance_scale": scale}
        ((name, off),) = self.guidance_off.items()
        null = {} if self.null_prompt is None or scale == 1.0 else {"negative_prompt": self.null_prompt}
        return {name: scale - 1.0 + off, **null}

    def text(self, condition: Condition, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments for a batch of encoded texts."""
        tokens = condition.tokens.to(device, dtype)
        arguments: dict[str, Any] = {self.tokens: tokens}
        if self.token_lists:
            rows = zip(tokens, condition.row_lengths(), strict=True)
            arguments[self.tokens] = [row[:length] for row, length in rows]
        if self.mask is not None:
            arguments[self.mask] = condition.mask.to(device)
        if self.pooled is not None:
            assert condition.pooled is not None
            arguments[self.pooled] = condition.pooled.to(device, dtype)
        return arguments
