"""What a safetensors file holds, by its header alone: a family's checkpoint, or what is said of anything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import DdxError, UsageError
from ddx.teachers.families.table import FAMILIES, Family
from ddx.teachers.parts.original_names import OriginalNames
from ddx.teachers.registry import TEACHERS
from ddx.teachers.safetensors_header import tensors_of
from ddx.teachers.unknown import holds_lora, unknown_teacher

UNET, VAE = "model.diffusion_model.", ("first_stage_model.", "vae.")
_FIRST = "input_blocks.0.0.weight"  # of a UNet
PREFIXES = (UNET, "diffusion_model.", "model.", "transformer.", "")  # before the names of a denoiser
_BESIDE = (*VAE, "text_encoders.", "cond_stage_model.", "conditioner.")  # where the other parts are
_QUANTISED = ("F8_", "F4", "F6_", "U8", "I8")
_QUANTISED_NAMES = ("scaled_fp8", ".scale_weight", ".weight_scale", ".absmax", ".quant_state")
_OTHERS = {  # what other files have in their names
    r"conditioner\.embedders\.0\.model\.": "the refiner of Stable Diffusion XL",
    r"^(model\.)?control_|^controlnet_|\.controlnet_|^input_hint_block|^zero_convs": "a ControlNet",
    r"^ip_adapter\.|^image_proj\.": "an IP-Adapter",
    r"distilled_guidance_layer\.": "Chroma",
}
_PARTS = {  # what there is beside a denoiser
    r"(^|\.)decoder\.conv_in\.weight$": "an autoencoder",
    r"(^|\.)(text_model\.encoder\.layers\.0|encoder\.block\.0\.layer\.0|resblocks\.0|layers\.0\.self_attn)\.": (
        "a text encoder"
    ),
}
_FOLDER = "save a folder with diffusers (from_single_file, then save_pretrained), and give --teacher FOLDER"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A checkpoint. `family` is None for a UNet's, and for a denoiser under diffusers' names: its base tells it."""

    file: Path
    tensors: Mapping[str, Any]  # dtype and shape by name
    family: Family | None = None
    prefix: str = ""  # before the denoiser's names
    is_unet: bool = False

    @property
    def denoiser(self) -> dict[str, Any]:
        """The denoiser's tensors, without the prefix."""
        found = {n: entry for n, entry in self.tensors.items() if n.startswith(self.prefix)}
        if not self.prefix:
            found = {n: entry for n, entry in found.items() if not n.startswith(_BESIDE)}
        return {name.removeprefix(self.prefix): entry for name, entry in found.items()}

    def prefix_of(self, part: str, original: OriginalNames) -> str | None:
        """What is before the names of another part's tensors, None for one that the file does not hold."""
        if part == "vae":
            return next((prefix for prefix in VAE if f"{prefix}decoder.conv_in.weight" in self.tensors), None)
        prefix = original.text.get(part)
        return prefix if prefix is not None and self._has(prefix) else None

    def beside(self, read: Iterable[str]) -> list[str]:
        """What else the file holds but the denoiser and what was read behind some prefixes, in short."""
        groups = {".".join(name.split(".")[:2]) for name in self.tensors if name.startswith("text_encoders.")}
        groups |= {prefix.rstrip(".") for prefix in _BESIDE if prefix != "text_encoders." and self._has(prefix)}
        return sorted(group for group in groups if not any(f"{name}.".startswith(f"{group}.") for name in read))

    def _has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.tensors)


def contents_of(file: Path) -> Contents:
    """Return what the file holds. UsageError for anything but a checkpoint, DdxError for one that is not whole."""
    if not file.is_file() or file.suffix.lower() != ".safetensors":
        raise _no_safetensors(file)
    tensors = tensors_of(file)
    if holds_lora(tensors):
        raise unknown_teacher(str(file), tuple(TEACHERS))  # says what to do with a LoRA
    _refuse_others(file, tensors)
    for family in FAMILIES:
        if (original := family.original) is None:
            continue
        for prefix in PREFIXES:
            if all(prefix + mark in tensors for mark in original.marks):
                found = Contents(file=file, tensors=tensors, family=family, prefix=prefix)
                _refuse_variants(found, original)
                return found
    if UNET + _FIRST in tensors:
        channels = tensors[UNET + _FIRST]["shape"][1]
        if channels != 4:
            raise UsageError(
                f"{file} takes {channels} channels: it paints into pictures or edits them",
                hint="give a text-to-image one",
            )
        return Contents(file=file, tensors=tensors, prefix=UNET, is_unet=True)
    if (file.parent / "config.json").is_file():
        raise unknown_teacher(str(file), tuple(TEACHERS))  # a part of a folder
    for prefix in PREFIXES:
        if any(name.startswith(f"{prefix}transformer_blocks.0.") for name in tensors):
            return Contents(file=file, tensors=tensors, prefix=prefix)
    raise _unknown(file, tensors)


def _no_safetensors(file: Path) -> UsageError:
    if not file.is_file():
        return unknown_teacher(str(file), tuple(TEACHERS))
    if file.suffix.lower() == ".gguf":
        return UsageError(
            f"{file} holds quantised weights, and a teacher is read at full precision",
            hint="look for the bf16 or fp16 .safetensors of the same model",
        )
    return UsageError(
        f"{file} is no safetensors file, and pickled weights are never loaded",
        hint="look for the .safetensors of the same model, or convert it where you trust it",
    )


def _refuse_others(file: Path, tensors: Mapping[str, Any]) -> None:
    quantised = next((n for n, e in tensors.items() if e["dtype"].startswith(_QUANTISED)), None)
    quantised = quantised or next((n for n in tensors if any(mark in n for mark in _QUANTISED_NAMES)), None)
    if quantised is not None:
        dtype = tensors[quantised]["dtype"]
        raise UsageError(
            f"{file} holds quantised weights ({quantised} is {dtype}), and a teacher is read at full precision",
            hint="look for the bf16 or fp16 file of the same model",
        )
    other = next((what for pattern, what in _OTHERS.items() if _any(pattern, tensors)), None)
    if other is not None:
        raise UsageError(f"{file} holds {other} and no teacher", hint="give a text-to-image checkpoint")


def _refuse_variants(found: Contents, original: OriginalNames) -> None:
    """Raise UsageError for a relative of the family that ddx does not distil."""
    lacking = (what for name, what in original.needs.items() if found.prefix + name not in found.tensors)
    having = (what for part, what in original.refused.items() if any(part in name for name in found.denoiser))
    for what in (*lacking, *having):
        assert found.family is not None
        known = ", ".join(original.bases)
        raise UsageError(
            f"{found.file} holds {what}", hint=f"of {found.family.title} ddx takes {known} and its fine-tunes"
        )


def _unknown(file: Path, tensors: Mapping[str, Any]) -> DdxError:
    if not tensors:
        return UsageError(f"{file} holds no tensors", hint="is this the right file?")
    parts = [what for pattern, what in _PARTS.items() if _any(pattern, tensors)]
    if parts:
        return UsageError(
            f"{file} holds {' and '.join(parts)} and no denoiser",
            hint="give the checkpoint of the denoiser; the other parts come from --teacher-base",
        )
    if _any(r"^(unet\.)?down_blocks\.0\.", tensors):
        return UsageError(
            f"{file} holds a UNet under diffusers' names, without the other parts",
            hint="copy its base's folder, put the file there as unet/diffusion_pytorch_model.safetensors, and give "
            "--teacher FOLDER",
        )
    known = ", ".join(family.title for family in FAMILIES if family.original_text or family.original_names)
    return UsageError(
        f"{file} holds no checkpoint that ddx knows: its first tensor is {min(tensors)}",
        hint=f"ddx converts those of {known}; of others {_FOLDER}",
    )


def _any(pattern: str, names: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for name in names)
