"""A denoiser under its authors' names, with what else its file holds, as a folder of diffusers.

The parts that the file does not hold are the base's: hard links to its files where the disk allows, else copies.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.progress import Progress
from ddx.teachers.components import component_class, component_config
from ddx.teachers.hub import TEXT_SUFFIXES, local_source, read_json
from ddx.teachers.part_weights import link_weights, write_weights
from ddx.teachers.parts.original_names import AS_DIFFUSERS, OriginalNames
from ddx.teachers.parts.original_tensors import split
from ddx.teachers.single_file_base import Base
from ddx.teachers.single_file_contents import Contents

_WEIGHTS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}


def write_folder(found: Contents, base: Base, folder: Path, progress: Progress) -> None:
    """Write the pipeline of a file into `folder`, with the configs and the other parts of its base.

    UsageError where the file's tensors are not those of the base's networks.
    """
    from safetensors import safe_open

    adapter, source = base.family.adapter_class, local_source(base.folder)
    index = source.index
    for part in adapter.left_out:
        if part in index:
            index[part] = [None, None]
    folder.mkdir(parents=True)
    original = (found.family.original if found.family is not None else None) or AS_DIFFUSERS
    used: set[str] = set()
    with safe_open(found.file, framework="pt") as file:
        for part in (*adapter.part_classes, "scheduler"):
            (folder / part).mkdir()
            for path in (base.folder / part).iterdir():
                if path.suffix in TEXT_SUFFIXES and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, folder / part / path.name)
            if part.startswith("tokenizer") or part == "scheduler":
                continue
            library = str(index[part][0])
            prefix = found.prefix_of(part, original)
            if part == adapter.denoiser_part:
                kind = component_class(source, part, adapter.part_classes[part])
                tensors = _denoiser(found, original, kind, base, file)
                write_weights(folder / part, _WEIGHTS[library], tensors)
            elif part == "vae" and prefix is not None and index[part][1] == "AutoencoderKL":
                used.add(prefix)
                _write_vae(found, base.folder, prefix, folder / part, file)
            elif part.startswith("text_encoder") and prefix is not None:
                used.add(prefix)
                kind = component_class(source, part, adapter.part_classes[part])
                tensors = _text_encoder(found, kind, component_config(source, part), part, prefix, file)
                write_weights(folder / part, _WEIGHTS[library], tensors)
            else:
                link_weights(base.folder / part, folder / part)
    if not_read := found.beside(used):
        progress.log(f"not read, for the base has its own: {', '.join(not_read)}")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _denoiser(
    found: Contents, original: OriginalNames, kind: Any, base: Base, file: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yield diffusers' tensors of the denoiser, after all names and shapes are found to be right."""
    config = read_json(base.folder / base.family.adapter_class.denoiser_part / "config.json")
    with torch.device("meta"):
        network: nn.Module = kind.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    there = {name: tuple(entry["shape"]) for name, entry in found.denoiser.items()}
    stacks = (AS_DIFFUSERS if shapes.keys() <= there.keys() else original).stacks(shapes)
    wanted = {name: stack.shape(shapes) for name, stack in stacks.items()}
    _refuse_misfits(found, Path(base.name).name, wanted, there, original.unread)
    for name, stack in stacks.items():
        yield from split(stack, file.get_tensor(found.prefix + name), shapes)


def _refuse_misfits(
    found: Contents, base: str, wanted: Mapping[str, Any], there: Mapping[str, Any], unread: Iterable[str]
) -> None:
    missing, unknown = sorted(wanted.keys() - there.keys()), sorted(there.keys() - wanted.keys() - set(unread))
    other = [f"{n} {there[n]} and not {s}" for n, s in wanted.items() if n in there and there[n] != s]
    for what, names in (("lacks", missing), ("has beside them", unknown), ("has", other)):
        if names:
            shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            raise UsageError(
                f"{found.file} does not hold a network with the config of {base}: it {what} {shown}",
                hint="name the teacher or the folder whose config it has: --teacher-base NAME|PATH",
            )


def _write_vae(found: Contents, base: Path, prefix: str, folder: Path, file: Any) -> None:
    """Write the autoencoder of a file, by diffusers' own translation of its names."""
    from diffusers import AutoencoderKL

    tensors = {name: file.get_tensor(name) for name in found.tensors if name.startswith(prefix)}
    dtypes = {value.dtype for value in tensors.values()}
    vae: Any = AutoencoderKL.from_single_file(tensors, config=str(base), subfolder="vae", local_files_only=True)
    (vae.to(dtypes.pop()) if len(dtypes) == 1 else vae).save_pretrained(folder, safe_serialization=True)


def _text_encoder(
    found: Contents, kind: Any, config: Mapping[str, Any], part: str, prefix: str, file: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a text encoder, whose names are transformers' behind the prefix."""
    with torch.device("meta"):
        model: nn.Module = kind(kind.config_class.from_dict(dict(config)))
    groups: dict[int, set[str]] = {}  # the names of each tensor: some have two
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(_bare(name))
    names = {name.removeprefix(prefix): name for name in found.tensors if name.startswith(prefix)}
    have = {_bare(name): name for name in names}
    missing = sorted(min(group) for group in groups.values() if not group & have.keys())
    if missing == ["text_projection.weight"]:  # the identity, of those that leave it out
        weight: Any = model.get_submodule("text_projection").weight
        dtype = file.get_tensor(next(iter(names.values()))).dtype
        yield "text_projection.weight", torch.eye(*weight.shape, dtype=dtype)
    elif missing:
        raise UsageError(
            f"{found.file} has other tensors of {part} than its base: it lacks {prefix}{missing[0]}",
            hint="name the teacher or the folder whose configs it has: --teacher-base NAME|PATH",
        )
    known = set().union(*groups.values())
    for name, full in names.items():
        if _bare(name) in known:
            yield name, file.get_tensor(full)


def _bare(name: str) -> str:
    """A name without the wrapper that some versions of transformers put around a text model."""
    return name.removeprefix("text_model.").removeprefix("model.")
