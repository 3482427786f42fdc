"""A teacher in one file, in the layout of the original checkpoints: converted once into a diffusers folder.

What it is, is read from its header. The configs, the tokenizers and the parts that it does not hold are those of a
base: a named teacher of its family, or a folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import DdxError, UsageError, cannot_write
from ddx.progress import Progress
from ddx.run_record import read_run, versions, write_run
from ddx.teachers.families.table import FAMILIES, Family, find_family, no_adapter
from ddx.teachers.hub import read_json
from ddx.teachers.parts.original_names import AS_DIFFUSERS
from ddx.teachers.published_students import warn_of_name
from ddx.teachers.registry import TEACHERS
from ddx.teachers.safetensors_header import tensors_of
from ddx.teachers.single_file_base import base_folder, missing_files
from ddx.teachers.single_file_contents import UNET, VAE, Contents, contents_of

KIND = "converted teacher"
_WIDTHS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}  # of the text that the UNet attends to


@dataclass(frozen=True, kw_only=True)
class Base:
    """Whose configs and tokenizers a file takes: a folder, and the name that it was asked for by."""

    name: str
    folder: Path
    family: Family


def teacher_folder(file: Path, *, base: str | None, root: Path, progress: Progress) -> Path:
    """Return the diffusers folder of a checkpoint, in `root`; converted now, or before from a file of these bytes.

    `base` is the name of a teacher or a folder, None to tell it from the header. UsageError for a file that holds
    something else, DdxError where the base's configs are neither cached nor to be had.
    """
    contents = contents_of(file)
    warn_of_name(f"./{file.name}")
    chosen = _choose_base(contents, base)
    stamp = {"file": str(file.resolve()), "bytes": file.stat().st_size, "modified": file.stat().st_mtime_ns}
    with _alone(root):
        known = next(
            (f for f, record in _converted(root) if stamp.items() <= record.items() and record.get("base") == chosen),
            None,
        )
        if known is not None:
            return known
        progress.log(f"reading {file} …")
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        for folder, record in _converted(root):
            if record.get("sha256") == sha256 and record.get("base") == chosen:
                return folder
        found = _open_base(contents, chosen)
        folder = root / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', file.stem).strip('-.') or 'teacher'}-{sha256[:12]}"
        if folder.exists():  # converted with another base
            folder = folder.with_name(f"{folder.name}-{re.sub(r'[^A-Za-z0-9._-]+', '-', chosen)}")
        progress.log(f"converting it to {folder}, with the configs of {chosen} …")
        _convert(contents, found, folder, progress, {**stamp, "sha256": sha256, "base": chosen})
    return folder


def _converted(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in sorted(root.glob("*/model_index.json")):
        record = read_run(path.parent)
        if record is not None and record.get("kind") == KIND:
            yield path.parent, record


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold `root` against other processes: the ranks of a run ask at once, and one of them converts."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".converting").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise cannot_write(error.filename or root, error) from error


def _choose_base(contents: Contents, base: str | None) -> str:
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


def _open_base(contents: Contents, name: str) -> Base:
    """The base of a file, with the weights of the parts that the file does not hold."""
    families = _families(contents)
    known = [spec.name for spec in TEACHERS.values() if spec.family in {family.name for family in families}]
    if Path(name).is_dir():
        folder = Path(name)
    elif name in known:
        spec = TEACHERS[name]
        folder = base_folder(spec, _lacking(contents, next(row for row in families if row.name == spec.family)))
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
    if not contents.is_unet and (lacking := missing_files(folder, family, _lacking(contents, family))):
        raise DdxError(f"{folder} lacks {', '.join(lacking)}", hint="name a whole base: --teacher-base NAME|PATH")
    found = Base(name=name, folder=folder, family=family)
    if contents.is_unet:
        _require_parts(contents.file, found)
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


def _require_parts(file: Path, base: Base) -> None:
    """Raise UsageError for a checkpoint without an autoencoder or a text encoder: the base's would be another model."""
    header, prefixes = tensors_of(file), {"vae": VAE, **{p: (x,) for p, x in base.family.original_text.items()}}
    missing = [part for part, any_of in prefixes.items() if not any(name.startswith(any_of) for name in header)]
    if missing:
        raise UsageError(
            f"{file} has no {', '.join(missing)}: it is no whole {base.family.title} checkpoint",
            hint=f"give the whole one, or name its base: --teacher-base is {base.name} now",
        )


def _convert(contents: Contents, base: Base, folder: Path, progress: Progress, record: Mapping[str, Any]) -> None:
    """Write the folder whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if contents.is_unet:
            _convert_unet(contents.file, base, temporary)
        else:
            from ddx.teachers.single_file_original import write_folder

            write_folder(contents, base.folder, base.family.adapter_class, temporary, progress)
        write_run(temporary, {"kind": KIND, **record, "versions": versions()}, finished=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_unet(file: Path, base: Base, folder: Path) -> None:
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    from ddx.teachers.components import no_progress_bars

    pipeline: Any = getattr(diffusers, str(read_json(base.folder / "model_index.json")["_class_name"]))
    left_out: dict[str, Any] = dict.fromkeys(base.family.adapter_class.left_out)
    try:
        with no_progress_bars():
            found: Any = pipeline.from_single_file(
                str(file), config=str(base.folder), local_files_only=True, **left_out
            )
            _restore_dtypes(found, file, base)
            found.save_pretrained(folder, safe_serialization=True)
    except (SingleFileComponentError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DdxError(
            f"diffusers does not open {file} with the configs of {base.name}: {reason}",
            hint="name another base: --teacher-base NAME|PATH",
        ) from error


def _restore_dtypes(pipeline: Any, file: Path, base: Base) -> None:
    """Put each network back into the dtype of its tensors in the file, so that the folder takes no more space."""
    import torch

    names = {"F16": torch.float16, "BF16": torch.bfloat16}
    header = tensors_of(file)
    prefixes = {"unet": UNET, "vae": VAE[0], **base.family.original_text}
    for part, prefix in prefixes.items():
        stored = {e["dtype"] for n, e in header.items() if n.startswith(prefix) and e["dtype"] in ("F32", *names)}
        if len(stored) == 1 and (dtype := names.get(stored.pop())) is not None:
            getattr(pipeline, part).to(dtype)
