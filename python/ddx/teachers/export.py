"""Writing a student as a plain diffusers pipeline folder, without loading what it shares with its teacher."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddx.errors import cannot_write
from ddx.teachers.hub import TEXT_SUFFIXES, Source, variant_of, weight_files

# A weights file of the teacher is linked from this size on, smaller files are copied.
LINK_FROM_BYTES = 8 * 2**20


def write_pipeline(
    folder: Path,
    *,
    source: Source,
    shared_parts: Sequence[str],
    denoiser_part: str,
    network: nn.Module,
    dtype: torch.dtype,
    scheduler: Any,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``folder`` so that ``DiffusionPipeline.from_pretrained(folder)`` opens it.

    The denoiser is ``network`` in ``dtype``; ``shared_parts`` are the teacher's files, linked where the disk allows it.
    ``settings`` are the pipeline's own, beside its parts. ``model_index.json`` comes last, so a folder that has one is
    complete. Raises DdxError when the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in shared_parts:
            if part in source.parts:
                _share(source.folder / part, folder / part)
        _write_denoiser(folder / denoiser_part, network, dtype, source)
        scheduler.save_pretrained(folder / "scheduler")
        index = {**_student_index(source, folder, scheduler), **(settings or {})}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(error.filename or folder, error) from error


def _student_index(source: Source, folder: Path, scheduler: Any) -> dict[str, Any]:
    index = dict(source.index)
    index.pop("_name_or_path", None)
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    for part, entry in index.items():
        if isinstance(entry, list) and part != "scheduler" and not (folder / part).is_dir():
            index[part] = [None, None]  # optional parts, such as a safety checker, that were not carried over
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    return index


def _write_denoiser(folder: Path, network: nn.Module, dtype: torch.dtype, source: Source) -> None:
    """Saves through an empty twin, so that a cast never needs a second network with its own modules and hooks."""
    kind: Any = type(network)
    config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}  # type: ignore[arg-type]
    with torch.device("meta"):
        twin = kind(**config)
    weights = {
        name: tensor.detach().to(device="cpu", dtype=dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in network.state_dict().items()
    }
    twin.load_state_dict(weights, strict=True, assign=True)
    twin.register_to_config(_name_or_path=source.origin if source.revision != "local" else source.name)
    twin.save_pretrained(folder, safe_serialization=True)


def _share(source: Path, target: Path) -> None:
    """A component's configs, tokenizer files and safetensors; no pickles, no code, no second variants.

    Weights that exist only as a variant (fp16, say) lose it from their names, so that the student opens plainly.
    """
    target.mkdir(parents=True, exist_ok=True)
    weights = weight_files(source)
    variant = variant_of(weights[0]) if weights else None
    for file in weights:
        _link_or_copy(file.resolve(), target / _without(variant, file.name))
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.suffix not in TEXT_SUFFIXES:
            continue
        if ".index." not in file.name:
            shutil.copyfile(file, target / file.name)
        elif _variant_of_index(file) == variant:
            text = _without(variant, file.read_text(encoding="utf-8"))
            (target / _without(variant, file.name)).write_text(text, encoding="utf-8")


def _without(variant: str | None, text: str) -> str:
    return text.replace(f".{variant}", "") if variant else text


def _variant_of_index(file: Path) -> str | None:
    """The variant of a shard index: ``model.safetensors.index.fp16.json`` gives fp16."""
    tail = file.name.split(".index.", 1)[1]
    return None if tail == "json" else tail.removesuffix(".json")


def _link_or_copy(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    if source.stat().st_size >= LINK_FROM_BYTES:
        with contextlib.suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copyfile(source, target)
