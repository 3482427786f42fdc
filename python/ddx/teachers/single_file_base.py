"""Whose configs, tokenizers and other parts a single file takes: a named teacher's of its family, or a folder's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import DdxError, UsageError
from ddx.teachers.families.table import FAMILIES, Family, find_family, no_adapter
from ddx.teachers.hub import IGNORE_PATTERNS, TEXT_SUFFIXES, read_json, weight_files
from ddx.teachers.parts.original_names import AS_DIFFUSERS
from ddx.teachers.registry import TEACHERS, TeacherSpec, bundled_folder
from ddx.teachers.single_file_contents import VAE, Contents

_WIDTHS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}  # of the text that the UNet attends to


@dataclass(frozen=True, kw_only=True)
class Base:
    """Whose configs and tokenizers a file takes: a folder, and the name that it was asked for by."""

    name: str
    folder: Path
    family: Family


def choose_base(contents: Contents, base: str | None) -> str:
    """Return the base's name, or its path; the header tells which where none is named."""
    if base is not None:
        return str(Path(base).expanduser().resolve()) if Path(base).expanduser().is_dir() else base
    hint = "name the teacher or the folder whose configs it takes: --teacher-base NAME|PATH"
    tensors = contents.denoiser
    if contents.is_unet:
        widths = {entry["shape"][-1] for name, entry in tensors.items() if name.endswith("attn2.to_k.weight")}
        known, found = list(_WIDTHS.values()), [_WIDTHS[width] for width in widths if width in _WIDTHS]
    elif contents.family is None or contents.family.original is None:
        raise UsageError(f"{contents.file} has diffusers' names, which do not say whose configs it takes", hint=hint)
    else:
        bases = contents.family.original.bases
        known, found = list(bases), [name for name, signs in bases.items() if agree(signs, tensors)]
    if len(found) > 1:
        raise UsageError(f"{contents.file} has the shapes of {' and of '.join(found)}", hint=hint)
    if not found:
        title = "" if contents.family is None else f"holds {contents.family.title}, and "
        raise UsageError(f"{contents.file} {title}has the shapes of none of {', '.join(known)}", hint=hint)
    return found[0]


def agree(signs: Mapping[str, Any], tensors: Mapping[str, Any]) -> bool:
    """Whether the tensors have the shapes that a base's have, or are there or not as it says."""
    found = {name: tuple(tensors[name]["shape"]) for name in signs if name in tensors}
    return all(
        (name in found) is sign if isinstance(sign, bool) else found.get(name) == sign for name, sign in signs.items()
    )


def open_base(contents: Contents, name: str) -> Base:
    """Return the base of a file, with the weights of the parts that the file does not hold.

    UsageError for a base of another family or without those, DdxError where they cannot be had.
    """
    families = _families(contents)
    known = [spec.name for spec in TEACHERS.values() if spec.family in {family.name for family in families}]
    if Path(name).is_dir():
        folder = Path(name)
    elif name in known:
        spec = TEACHERS[name]
        folder = _named_folder(spec, _lacking(contents, next(row for row in families if row.name == spec.family)))
    else:
        raise UsageError(
            f"--teacher-base {name} is no folder, and none of {', '.join(known)}",
            hint=f"{contents.file} takes the configs of one of those, or of a folder of that family",
        )
    pipeline = str(read_json(folder / "model_index.json").get("_class_name"))
    family = find_family(pipeline)
    if family is None:
        raise no_adapter(name, pipeline)
    if family not in families:
        titles = " or ".join(row.title for row in families)
        raise UsageError(
            f"{contents.file} holds {titles}, and --teacher-base {name} is a {pipeline}",
            hint=f"--teacher-base is a folder of that family, or one of {', '.join(known)}",
        )
    if not contents.is_unet and (lacking := _missing(folder, family, _lacking(contents, family))):
        raise DdxError(f"{folder} lacks {', '.join(lacking)}", hint="name a whole base: --teacher-base NAME|PATH")
    found = Base(name=name, folder=folder, family=family)
    if contents.is_unet:
        _require_parts(contents, found)
    return found


def _families(contents: Contents) -> list[Family]:
    """The families that a file may be of."""
    if contents.family is not None:
        return [contents.family]
    return [row for row in FAMILIES if bool(row.original_text) is contents.is_unet]


def _lacking(contents: Contents, family: Family) -> list[str]:
    """The parts with weights that a file takes from its base: none of a UNet's, which holds all."""
    if contents.is_unet:
        return []
    adapter, original = family.adapter_class, family.original or AS_DIFFUSERS
    parts = (part for part in adapter.part_classes if part == "vae" or part.startswith("text_encoder"))
    return [
        part
        for part in parts
        if contents.prefix_of(part, original) is None
        or (part == "vae" and adapter.part_classes[part] != ("AutoencoderKL",))
    ]


def _require_parts(contents: Contents, base: Base) -> None:
    """Raise UsageError for a checkpoint without an autoencoder or a text encoder: the base's would be another model."""
    prefixes = {"vae": VAE, **{part: (prefix,) for part, prefix in base.family.original_text.items()}}
    missing = [part for part, any_of in prefixes.items() if not any(n.startswith(any_of) for n in contents.tensors)]
    if missing:
        raise UsageError(
            f"{contents.file} has no {', '.join(missing)}: it is no whole {base.family.title} checkpoint",
            hint=f"give the whole one, or name its base: --teacher-base is {base.name} now",
        )


def _named_folder(spec: TeacherSpec, parts: Sequence[str]) -> Path:
    """Return its folder in the hub's cache, with the configs, the tokenizers and the weights of some parts.

    Downloaded where they are not there. DdxError where they cannot be had; it names the command that fetches them.
    """
    if spec.source == "bundled":
        return bundled_folder(spec.name)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for revision in (spec.revision, "main"):
        try:
            folder = Path(snapshot_download(spec.source, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        index = folder / "model_index.json"
        family = find_family(str(read_json(index).get("_class_name"))) if index.is_file() else None
        if family is not None and not _missing(folder, family, parts):
            return folder
    kinds = TEXT_SUFFIXES if parts else (".json", ".txt")
    patterns = (*(f"*{kind}" for kind in kinds), *(f"{part}/*.safetensors" for part in parts))
    command = f"hf download {spec.source} --revision {spec.revision} " + " ".join(f'--include "{p}"' for p in patterns)
    what = f"the configs, the tokenizers, {', '.join(parts)}" if parts else "the configs and tokenizers"
    problem = f"{what} of {spec.name} ({spec.source}) are not cached"
    if constants.HF_HUB_OFFLINE:
        raise DdxError(f"{problem}, and HF_HUB_OFFLINE is set", hint=f"run `{command}` where there is a network")
    try:
        folder = Path(
            snapshot_download(
                spec.source,
                revision=spec.revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(IGNORE_PATTERNS),
            )
        )
    except Exception as error:  # no route, a proxy, TLS, a full disk: each transport raises its own
        raise DdxError(
            f"{problem}, and could not be downloaded: {error}", hint=f"run `{command}` where there is a network"
        ) from error
    return folder


def _missing(folder: Path, family: Family, parts: Sequence[str]) -> list[str]:
    """What a base's folder lacks: configs, and the weights of some parts; an interrupted download leaves some."""
    needed = family.adapter_class.part_classes
    configs = {part: "tokenizer_config.json" if part.startswith("tokenizer") else "config.json" for part in needed}
    configs["scheduler"] = "scheduler_config.json"
    lacking = [f"{part}/{file}" for part, file in configs.items() if not (folder / part / file).is_file()]
    return lacking + [f"the weights of {part}" for part in parts if not weight_files(folder / part)]
