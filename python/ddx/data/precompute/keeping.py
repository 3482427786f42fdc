"""The networks that a store's rows go through, kept in less memory of the device: what `--memory` chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddx.offload.keeping import Keeping, keep

if TYPE_CHECKING:
    from ddx.data.precompute.plan import Plan


@dataclass(frozen=True, kw_only=True)
class EncodeKeeping:
    """Where each network is kept, and the captions whose embeddings are on the device at once."""

    networks: Keeping
    captions_at_once: int


def keep_networks(plan: Plan, how: EncodeKeeping) -> Plan:
    """Load the networks of a plan's teacher and keep them so; return the plan that encodes as many captions at once.

    Networks that are not on the device for good run without the kernels of their family.
    """
    teacher, networks = plan.teacher, how.networks
    if not networks.all_on_device:
        teacher.home = torch.device("cpu")
        opens: Mapping[str, Any] = {"vae": teacher.vae, teacher.denoiser_part: teacher.network}
        loaded = {part: opens[part]() if part in opens else teacher.text_encoder(part) for part in networks.parts}
        keep(loaded, networks, teacher.device)
    return dataclasses.replace(plan, captions_at_once=how.captions_at_once)
