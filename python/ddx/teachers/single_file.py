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
from pathlib import Path
from typing import Any

from ddx.errors import DdxError, cannot_write, first_line
from ddx.progress import Progress
from ddx.run_record import read_run, versions, write_run
from ddx.teachers.hub import read_json
from ddx.teachers.published_students import warn_of_name
from ddx.teachers.safetensors_header import tensors_of
from ddx.teachers.single_file_base import Base, choose_base, open_base
from ddx.teachers.single_file_contents import UNET, VAE, Contents, contents_of

KIND = "converted teacher"


def teacher_folder(file: Path, *, base: str | None, root: Path, progress: Progress) -> Path:
    """Return the diffusers folder of a checkpoint, in `root`; converted now, or before from a file of these bytes.

    `base` is the name of a teacher or a folder, None to tell it from the header. UsageError for a file that holds
    something else, DdxError where the base's configs are neither cached nor to be had.
    """
    contents = contents_of(file)
    warn_of_name(f"./{file.name}")
    chosen = choose_base(contents, base)
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
        found = open_base(contents, chosen)
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


def _convert(contents: Contents, base: Base, folder: Path, progress: Progress, record: Mapping[str, Any]) -> None:
    """Write the folder whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if contents.is_unet:
            _convert_unet(contents.file, base, temporary)
        else:
            from ddx.teachers.single_file_original import write_folder

            write_folder(contents, base, temporary, progress)
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
        raise DdxError(
            f"diffusers does not open {file} with the configs of {base.name}: {first_line(error)}",
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
