"""A teacher in one file, in the layout of the original checkpoints: converted once into a diffusers folder.

What it is, is read from its header. The configs and tokenizers are those of a base: a named teacher of its family, of
which only these small files are needed, or a folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import DdxError, UsageError, cannot_write
from ddx.progress import Progress
from ddx.run_record import read_run, versions, write_run
from ddx.teachers.families.table import FAMILIES, Family, find_family, no_adapter
from ddx.teachers.hub import read_json
from ddx.teachers.registry import TEACHERS
from ddx.teachers.safetensors_header import header_of
from ddx.teachers.unknown import holds_lora, unknown_teacher

KIND = "converted teacher"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
_WIDTHS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}  # of the text that the UNet attends to
_OTHERS = {  # what other checkpoints have in their names
    r"joint_blocks\.": "Stable Diffusion 3",
    r"double_blocks\.": "FLUX",
    r"conditioner\.embedders\.0\.model\.": "the refiner of Stable Diffusion XL",
    r"control_model\.": "a ControlNet",
}
_FOLDER = "save it as a folder with diffusers (from_single_file, then save_pretrained), and give --teacher FOLDER"


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
    chosen = _choose_base(file, base)
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
        found = _open_base(chosen)
        _require_parts(file, found)
        folder = root / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', file.stem).strip('-.') or 'teacher'}-{sha256[:12]}"
        if folder.exists():  # converted with another base
            folder = folder.with_name(f"{folder.name}-{re.sub(r'[^A-Za-z0-9._-]+', '-', chosen)}")
        progress.log(f"converting it to {folder}, with the configs of {chosen} …")
        _convert(file, found, folder, {**stamp, "sha256": sha256, "base": chosen})
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


def _choose_base(file: Path, base: str | None) -> str:
    """Return the base's name, or its path; the header tells which where none is named."""
    if not file.is_file() or file.suffix.lower() != ".safetensors":
        if file.is_file():
            raise UsageError(
                f"{file} is no safetensors file, and pickled weights are never loaded",
                hint="look for the .safetensors of the same model, or convert it where you trust it",
            )
        raise unknown_teacher(str(file), tuple(TEACHERS))
    header = _tensors(file)
    if holds_lora(header):
        raise unknown_teacher(str(file), tuple(TEACHERS))  # says what to do with a LoRA
    if not any(name.startswith(UNET) for name in header) and (file.parent / "config.json").is_file():
        raise unknown_teacher(str(file), tuple(TEACHERS))  # a part of a folder
    known = ", ".join(family.title for family in FAMILIES if family.original_text)
    other = next((what for pattern, what in _OTHERS.items() if any(re.search(pattern, name) for name in header)), None)
    if other is not None or f"{UNET}input_blocks.0.0.weight" not in header:
        raise UsageError(f"{file} holds {other or 'no checkpoint that ddx knows'}; ddx converts {known}", hint=_FOLDER)
    channels = header[f"{UNET}input_blocks.0.0.weight"]["shape"][1]
    if channels != 4:
        raise UsageError(
            f"{file} takes {channels} channels: it paints into pictures or edits them", hint="give a text-to-image one"
        )
    if base is not None:
        return str(Path(base).expanduser().resolve()) if Path(base).expanduser().is_dir() else base
    widths = {entry["shape"][-1] for name, entry in header.items() if name.endswith("attn2.to_k.weight")}
    found = _WIDTHS.get(widths.pop()) if len(widths) == 1 else None
    if found is None:
        raise UsageError(
            f"{file} has the shapes of none of {', '.join(_WIDTHS.values())}",
            hint="name the teacher or the folder whose configs it takes: --teacher-base NAME|PATH",
        )
    return found


def _tensors(file: Path) -> dict[str, Any]:
    """Dtype and shape by the tensor's name."""
    return {name: entry for name, entry in header_of(file).items() if name != "__metadata__"}


def _open_base(name: str) -> Base:
    folder = Path(name) if Path(name).is_dir() else _configs(name)
    pipeline = str(read_json(folder / "model_index.json").get("_class_name"))
    family = find_family(pipeline)
    if family is None:
        raise no_adapter(name, pipeline)
    if not family.original_text:
        known = ", ".join(spec.name for spec in TEACHERS.values() if _is_base(spec.family))
        raise UsageError(
            f"{name} is of the family {family.name}, whose checkpoints ddx does not convert",
            hint=f"--teacher-base is a folder, or one of {known}",
        )
    return Base(name=name, folder=folder, family=family)


def _is_base(family: str) -> bool:
    return any(row.name == family and row.original_text for row in FAMILIES)


def _configs(name: str) -> Path:
    """The folder of a named teacher in the hub's cache, for its configs and tokenizers; downloaded without weights."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    spec = TEACHERS.get(name)
    if spec is None or not _is_base(spec.family):
        known = ", ".join(spec.name for spec in TEACHERS.values() if _is_base(spec.family))
        raise UsageError(f"--teacher-base {name} is no folder, and none of {known}", hint="--teacher-base NAME|PATH")
    for revision in (spec.revision, "main"):
        try:
            folder = Path(snapshot_download(spec.source, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        if not _missing(folder):
            return folder
    patterns = ("*.json", "*.txt")
    command = f"hf download {spec.source} --revision {spec.revision} " + " ".join(f'--include "{p}"' for p in patterns)
    problem = f"the configs and tokenizers of {name} ({spec.source}) are not cached"
    if constants.HF_HUB_OFFLINE:
        raise DdxError(f"{problem}, and HF_HUB_OFFLINE is set", hint=f"run `{command}` where there is a network")
    try:
        folder = Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=list(patterns)))
    except Exception as error:  # no route, a proxy, TLS, a full disk: each transport raises its own
        raise DdxError(
            f"{problem}, and could not be downloaded: {error}", hint=f"run `{command}` where there is a network"
        ) from error
    return folder


def _missing(folder: Path) -> Sequence[str]:
    """What a base's folder lacks; an interrupted download leaves some."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    index = read_json(folder / "model_index.json")
    family = find_family(str(index.get("_class_name")))
    parts = family.adapter_class.part_classes if family is not None else {}
    configs = {part: "tokenizer_config.json" if part.startswith("tokenizer") else "config.json" for part in parts}
    configs["scheduler"] = "scheduler_config.json"
    return [f"{part}/{file}" for part, file in configs.items() if not (folder / part / file).is_file()]


def _require_parts(file: Path, base: Base) -> None:
    """Raise UsageError for a checkpoint without an autoencoder or a text encoder: the base's would be another model."""
    header, prefixes = _tensors(file), {"vae": (VAE, "vae."), **{p: (x,) for p, x in base.family.original_text.items()}}
    missing = [part for part, any_of in prefixes.items() if not any(name.startswith(any_of) for name in header)]
    if missing:
        raise UsageError(
            f"{file} has no {', '.join(missing)}: it is no whole {base.family.title} checkpoint",
            hint=f"give the whole one, or name its base: --teacher-base is {base.name} now",
        )


def _convert(file: Path, base: Base, folder: Path, record: Mapping[str, Any]) -> None:
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    from ddx.teachers.components import no_progress_bars

    pipeline: Any = getattr(diffusers, str(read_json(base.folder / "model_index.json")["_class_name"]))
    left_out: dict[str, Any] = dict.fromkeys(base.family.adapter_class.left_out)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        with no_progress_bars():
            found: Any = pipeline.from_single_file(
                str(file), config=str(base.folder), local_files_only=True, **left_out
            )
            _restore_dtypes(found, file, base)
            shutil.rmtree(temporary, ignore_errors=True)
            found.save_pretrained(temporary, safe_serialization=True)
        write_run(temporary, {"kind": KIND, **record, "versions": versions()}, finished=True)
        os.replace(temporary, folder)
    except (SingleFileComponentError, ValueError, RuntimeError, KeyError, TypeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DdxError(
            f"diffusers does not open {file} with the configs of {base.name}: {reason}",
            hint="name another base: --teacher-base NAME|PATH",
        ) from error


def _restore_dtypes(pipeline: Any, file: Path, base: Base) -> None:
    """Put each network back into the dtype of its tensors in the file, so that the folder takes no more space."""
    import torch

    names = {"F16": torch.float16, "BF16": torch.bfloat16}
    header = _tensors(file)
    prefixes = {"unet": UNET, "vae": VAE, **base.family.original_text}
    for part, prefix in prefixes.items():
        stored = {e["dtype"] for n, e in header.items() if n.startswith(prefix) and e["dtype"] in ("F32", *names)}
        if len(stored) == 1 and (dtype := names.get(stored.pop())) is not None:
            getattr(pipeline, part).to(dtype)
