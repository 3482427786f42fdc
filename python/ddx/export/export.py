"""`ddx export`: one student, in the format of another program."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import UsageError
from ddx.export.config import LOW_RANK, ExportConfig
from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE, diffusers_config
from ddx.progress import NullProgress, Progress
from ddx.sampling.run import choose_student
from ddx.sampling.student import StudentFolder
from ddx.workspace import Workspace

if TYPE_CHECKING:
    from ddx.export.low_rank import CutDifference
    from ddx.teachers.base import Teacher

DEFAULT_RANK = 64


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. `facts` are those of a LoRA: its rank, and the shares of energy."""

    student: Path
    format: str
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {"student": str(self.student), "format": self.format, "path": str(self.path), **self.facts}


def plan(student: Path | None, config: ExportConfig, workspace: Workspace) -> dict[str, Any]:
    """Return what `export` would do, without loading a weight. Raises what it raises of what cannot be exported."""
    files, out = _prepare(student, config, workspace)
    planned: dict[str, Any] = {"student": str(files.folder), "format": config.format, "out": str(out)}
    if config.format in LOW_RANK:
        planned["teacher"] = config.teacher or files.record.get("teacher")
        planned["rank"] = config.rank or _own_rank(files, config) or DEFAULT_RANK
    return planned


def export(
    student: Path | None, config: ExportConfig, workspace: Workspace, progress: Progress | None = None
) -> Exported:
    """Write what `config` asks for and return where it is. UsageError and DdxError for what cannot be written."""
    progress = progress or NullProgress()
    files, out = _prepare(student, config, workspace)
    if student is None:
        progress.log(f"student: {files.folder} (the newest)")
    facts: dict[str, Any] = {}
    if config.format == "diffusers":
        _write_folder(files, config, out)
    elif config.format == "single-file":
        from ddx.export.single_file import write_single_file

        write_single_file(files, out, steps=config.steps, dtype=config.dtype)
    else:
        facts = _write_low_rank(files, config, out, progress)
    return Exported(student=files.folder, format=config.format, path=out, facts=facts)


def _prepare(student: Path | None, config: ExportConfig, workspace: Workspace) -> tuple[StudentFolder, Path]:
    from ddx.export.single_file import require_single_file

    files = StudentFolder(choose_student(student, workspace))
    if config.steps is not None:
        files.for_steps(config.steps)
    name = {"single-file": f"{files.name}.safetensors", "lora": DIFFUSERS_FILE, "comfyui": COMFYUI_FILE}
    is_folder = config.format == "diffusers"
    out = config.out or workspace.root / "exports" / files.name / name.get(config.format, config.format)
    if not is_folder and out.suffix != ".safetensors":
        out = out / name[config.format]
    if out.exists() and not (is_folder and out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists", hint="give another --out, or delete it")
    if config.format == "single-file":
        require_single_file(files)
    if config.format in LOW_RANK and config.teacher is None and not files.record.get("teacher"):
        raise UsageError(
            f"{files.folder} does not say which teacher it was distilled from", hint="name it: --teacher NAME|PATH"
        )
    return files, out


def _write_folder(files: StudentFolder, config: ExportConfig, out: Path) -> None:
    from ddx.export.files import copy_student

    copy_student(files, out)
    if config.dtype == "auto":
        return
    from ddx.export.weights import DTYPES, cast, stored_weights
    from ddx.networks.lora_files import save_tensors

    for path in out.glob(f"**/{files.denoiser_part}/*.safetensors"):
        with stored_weights(path.parent, only=path) as weights:
            tensors = {name: cast(weights[name], DTYPES[config.dtype]) for name in weights}
        save_tensors(path, tensors, {}, None)


def _folder(files: StudentFolder, steps: int | None) -> Path:
    return files.folder if steps is None else files.for_steps(steps)


def _own_rank(files: StudentFolder, config: ExportConfig) -> int | None:
    """The rank of the low-rank file that the student has, None for one that has none."""
    found = diffusers_config(_folder(files, config.steps))
    return None if found is None else int(found["r"])


def _write_low_rank(files: StudentFolder, config: ExportConfig, out: Path, progress: Progress) -> dict[str, Any]:
    import torch

    from ddx.device import find_device
    from ddx.export.low_rank import cut_difference
    from ddx.export.weights import DTYPES
    from ddx.networks.lora_files import write_comfyui_file, write_diffusers_file

    own, folder = _own_rank(files, config), _folder(files, config.steps)
    if own is not None and config.rank in (None, own) and config.teacher is None:
        _copy_low_rank(folder, config, out)
        return {"rank": own, "kept": 1.0}
    teacher = _teacher(files, config, progress)
    rank, denoiser = config.rank or DEFAULT_RANK, folder / files.denoiser_part
    found = cut_difference(teacher, denoiser, rank, progress, device=find_device(config.device))
    dtype = DTYPES.get(config.dtype) or getattr(torch, files.saved_dtype)
    if config.format == "lora" and not (files.family and files.family.loads_lora):
        progress.log(f"diffusers' {files.pipeline_class} has no loader of LoRA files: peft reads this one")
    write = write_diffusers_file if config.format == "lora" else write_comfyui_file
    write(out, found.products, teacher, dtype)
    return _facts(found)


def _facts(found: CutDifference) -> dict[str, Any]:
    return {
        "rank": found.rank,
        "layers": len(found.products),
        "kept": found.share,
        "outside": found.outside / found.total,
    }


def _copy_low_rank(folder: Path, config: ExportConfig, out: Path) -> None:
    from ddx.export.weights import DTYPES, stored_weights
    from ddx.networks.lora_files import save_tensors
    from ddx.networks.lora_header import metadata_of

    source = folder / (DIFFUSERS_FILE if config.format == "lora" else COMFYUI_FILE)
    with stored_weights(folder, only=source) as weights:
        save_tensors(out, {name: weights[name] for name in weights}, metadata_of(source), DTYPES.get(config.dtype))


def _teacher(files: StudentFolder, config: ExportConfig, progress: Progress) -> Teacher:
    from ddx.teachers.registry import load_teacher

    teacher = load_teacher(config.teacher or str(files.record["teacher"]))
    revision = files.record.get("teacher_revision")
    if config.teacher is None and revision not in (None, "local", teacher.revision):
        progress.log(
            f"the student was distilled from {teacher.name} at {revision}, and here it is at {teacher.revision}: "
            "the LoRA is the difference to the latter"
        )
    return teacher
