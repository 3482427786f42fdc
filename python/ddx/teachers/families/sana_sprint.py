"""SANA-Sprint (Chen et al. 2025) as a student to start from: the same network, which also takes guidance.

Its pipeline speaks of angles, ``x = cos(a) x0 + sin(a) eps``. Divided by ``cos(a) + sin(a)`` that is the flow's x_t at
``t = sin(a) / (cos(a) + sin(a))``, which is what the network is given, with t itself as its time; what comes out is the
flow's velocity ``eps - x0``, and the prediction of x0 is the same in both. So its weights are those of a student, of a
teacher whose network sees times from 0 to 1 and has norms on queries and keys. Its guidance is one number a picture,
whose embedding is added to the time's: for one guidance that is a bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddx.errors import UsageError
from ddx.teachers.components import component_config, load_model

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher
    from ddx.teachers.hub import Source

_TIME = "time_embed.timestep_embedder."
_GUIDANCE = "time_embed.guidance_embedder."


@torch.no_grad()
def sprint_weights(teacher: Teacher, source: Source, guidance: float) -> dict[str, Tensor]:
    """Return the weights of a ``SanaSprintPipeline`` at one guidance, float32, under the names of SANA's network.

    Raises UsageError where the teacher's network reads other times, has no such norms, or other latents.
    """
    _require_same_network(teacher, source)
    classes = teacher.part_classes["transformer"]
    network: Any = load_model(source, "transformer", classes, dtype=torch.float32, device=torch.device("cpu"))
    embed = network.time_embed
    number = torch.tensor([guidance]) * float(network.config.guidance_embeds_scale)
    constant = embed.guidance_embedder(embed.guidance_condition_proj(number))[0]
    weights = {
        name.replace(_TIME, "time_embed.emb.timestep_embedder."): value
        for name, value in network.state_dict().items()
        if not name.startswith(_GUIDANCE)
    }
    bias = "time_embed.emb.timestep_embedder.linear_2.bias"
    return {**weights, bias: weights[bias] + constant}


def _require_same_network(teacher: Teacher, source: Source) -> None:
    own, theirs = teacher.denoiser_config, component_config(source, "transformer")
    scale = float(own.get("timestep_scale", 1.0)) * teacher.process.num_train_timesteps
    if abs(scale - 1.0) > 1e-6 or own.get("qk_norm") != theirs.get("qk_norm"):
        raise UsageError(
            f"{source.name} sees times from 0 to 1 and has norms on its queries and keys; {teacher.name} does not",
            hint=f"`ddx prepare --teacher {teacher.name}` makes a teacher that does; the one that SANA-Sprint was "
            "distilled from is one too, --teacher sana-sprint-1600m-teacher",
        )
    vae = component_config(source, "vae")
    for key in ("latent_channels", "scaling_factor", "encoder_block_out_channels"):
        if vae.get(key) != teacher.vae_config.get(key):
            raise UsageError(
                f"{source.name} draws other latents than {teacher.name}: the {key} of its autoencoder is "
                f"{vae.get(key)}, not {teacher.vae_config.get(key)}",
                hint="give a teacher with the same autoencoder",
            )
