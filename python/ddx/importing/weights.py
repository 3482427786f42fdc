"""From a published file to the state dict of the teacher's denoiser.

a denoiser's state dict       DMD2, SDXL-Lightning: in diffusers' names, or as a whole checkpoint in the original ones;
                              a transformer also alone, in its authors' names
a pickled module              SiD, SiD-LSG: read as data (:mod:`ddx.importing.pickles`)
guidance as an input          latent consistency models: one scale is folded into the first layer of the time embedding
a LoRA                        LCM-LoRA, Hyper-SD and other turbo files, in diffusers' or in kohya's names
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddx.errors import DdxError, UsageError
from ddx.importing.config import ImportConfig
from ddx.importing.pickles import read_pickle, tensors_of
from ddx.sampling.pipeline import dtype_keyword
from ddx.teachers.families.table import find_family
from ddx.teachers.parts.original_names import OriginalNames
from ddx.teachers.parts.original_tensors import renamed
from ddx.teachers.single_file_contents import PREFIXES
from ddx.teachers.unknown import holds_lora

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

COND_PROJ = "time_embedding.cond_proj.weight"  # of a UNet that takes guidance
ORIGINAL = "model.diffusion_model."
# What people wrap a state dict in, the exported average first.
_ENTRIES = (
    "ema",
    "G_ema",
    "model_ema",
    "state_dict",
    "model",
    "module",
    "generator",
    "G",
    "unet",
    "transformer",
    "net",
)
_PREFIXES = ("module.", "_orig_mod.", "unet.", "transformer.", "model.", "feedforward_model.")


def read_file(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file, by name; UsageError where it holds several sets of weights, or none."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        except (OSError, SafetensorError) as error:
            raise DdxError(f"cannot read {path}: {error}", hint="is the download complete?") from error
    content = read_pickle(path)
    if entry is not None:
        if not isinstance(content, Mapping) or entry not in content:
            known = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no entries"
            raise UsageError(f"{path} has no entry {entry!r}", hint=f"it has {known}")
        content = content[entry]
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inside = [name for name in _ENTRIES if name in content]
        if not inside:
            break
        content = content[inside[0]]
    found = tensors_of(content)
    if not found:
        raise UsageError(f"{path} holds no tensors", hint="name the entry that holds the weights with --entry")
    return found


def student_network(teacher: Teacher, path: Path, state: dict[str, Tensor], config: ImportConfig) -> nn.Module:
    """Return the teacher's denoiser with the student's weights, float32. UsageError where they do not fit it."""
    if holds_lora(state):
        return _with_lora(teacher, state, config.lora_scale)
    family = find_family(teacher.source_info.pipeline)
    original = None if family is None else family.original
    if original is None and any(name.startswith(ORIGINAL) for name in state):
        return _from_original(teacher, path)
    network = teacher.new_student_network(torch.float32)
    own = network.state_dict()
    state = _named_as(own, state) if original is None else _from_authors(original, own, state)
    if COND_PROJ in state and COND_PROJ not in own:
        state = fold_guidance_input(state, config.guidance)
    _refuse_misfits(teacher, path, own, state)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network


def _from_authors(original: OriginalNames, own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a transformer in diffusers' names, where the file has its authors' or a wrapper's."""
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    for prefix in PREFIXES:
        names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        if set(original.marks) <= names and not shapes.keys() <= names:
            return renamed(original, state, shapes, prefix)
    return _named_as(own, state)


def fold_guidance_input(state: Mapping[str, Tensor], guidance: float | None) -> dict[str, Tensor]:
    """Return the weights without their input of guidance, at one scale of it (Luo et al. 2023, w = guidance - 1).

    The embedding of w is added to what the first linear of the time embedding sees: at one w it is a part of its bias.
    """
    if guidance is None:
        raise UsageError("the weights take guidance as an input", hint="say at which to draw: --guidance 7.5")
    state = dict(state)
    projection = state.pop(COND_PROJ).double()
    half = projection.shape[1] // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (guidance - 1.0) * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])
    weight, name = state["time_embedding.linear_1.weight"].double(), "time_embedding.linear_1.bias"
    state[name] = (state[name].double() + weight @ (projection @ embedding)).float()
    return state


def _named_as(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes of wrappers, where that gives the network's names."""
    found = dict(state)
    for _ in _PREFIXES:
        if any(name in own for name in found):
            return found
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            return found
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _refuse_misfits(teacher: Teacher, path: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    for what, names in (("lacks", missing), ("has beside them", unknown), ("has in other shapes", other)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UsageError(
                f"{path} does not hold the weights of {teacher.name}: it {what} {shown}",
                hint="is --teacher the model that it was distilled from? `ddx list teachers` shows the names",
            )


def _from_original(teacher: Teacher, path: Path) -> nn.Module:
    """The denoiser of a whole checkpoint, by diffusers' own translation of its names."""
    kind: Any = type(teacher.network())
    if not hasattr(kind, "from_single_file"):
        raise UsageError(
            f"diffusers reads no single file of a {kind.__name__}", hint="give its weights in diffusers' layout"
        )
    try:
        network: nn.Module = kind.from_single_file(
            str(path),
            config=str(teacher.folder),
            subfolder=teacher.denoiser_part,
            local_files_only=True,
            **{dtype_keyword(): torch.float32},
        )
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise UsageError(
            f"{path} does not hold the weights of {teacher.name}: {error}",
            hint="is --teacher the model that it was distilled from?",
        ) from error
    return network.to(teacher.device)


def _with_lora(teacher: Teacher, state: dict[str, Tensor], scale: float) -> nn.Module:
    """The teacher's denoiser with a LoRA merged into it, by diffusers' own loader."""
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(
        teacher.folder, use_safetensors=True, local_files_only=True, **{dtype_keyword(): torch.float32}
    )
    network: nn.Module = getattr(pipeline, teacher.denoiser_part)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        pipeline.load_lora_weights(state)
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"the LoRA does not fit {teacher.name}: {error}", hint="is --teacher the model that it was made for?"
        ) from error
    after = network.state_dict()
    if before.keys() != after.keys() or all(torch.equal(value, after[name]) for name, value in before.items()):
        raise UsageError(
            f"nothing of the LoRA belongs to {teacher.name}", hint="is --teacher the model that it was made for?"
        )
    return network.to(teacher.device)
