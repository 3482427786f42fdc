"""The folder of a named teacher that a single file takes its configs and its other parts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.errors import DdxError
from ddx.teachers.families.table import Family, find_family
from ddx.teachers.hub import IGNORE_PATTERNS, TEXT_SUFFIXES, read_json, weight_files

if TYPE_CHECKING:
    from ddx.teachers.registry import TeacherSpec


def base_folder(spec: TeacherSpec, parts: Sequence[str]) -> Path:
    """Return its folder in the hub's cache, with the configs, the tokenizers and the weights of some parts.

    Downloaded where they are not there. DdxError where they cannot be had; it names the command that fetches them.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for revision in (spec.revision, "main"):
        try:
            folder = Path(snapshot_download(spec.source, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        index = folder / "model_index.json"
        family = find_family(str(read_json(index).get("_class_name"))) if index.is_file() else None
        if family is not None and not missing_files(folder, family, parts):
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


def missing_files(folder: Path, family: Family, parts: Sequence[str]) -> list[str]:
    """What a base's folder lacks: configs, and the weights of some parts; an interrupted download leaves some."""
    needed = family.adapter_class.part_classes
    configs = {part: "tokenizer_config.json" if part.startswith("tokenizer") else "config.json" for part in needed}
    configs["scheduler"] = "scheduler_config.json"
    lacking = [f"{part}/{file}" for part, file in configs.items() if not (folder / part / file).is_file()]
    return lacking + [f"the weights of {part}" for part in parts if not weight_files(folder / part)]
