"""`ddx import`: weights that others published become a student's folder, as `ddx distill` leaves it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import DdxError, UsageError
from ddx.importing.config import ImportConfig
from ddx.progress import NullProgress, Progress
from ddx.run_record import versions, write_run
from ddx.workspace import Workspace

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

_ON_THE_HUB = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.\w+)")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")


def import_student(
    source: str, config: ImportConfig, *, workspace: Workspace | None = None, progress: Progress | None = None
) -> Path:
    """Write the student and return its folder.

    `source` is a file, a folder with one, or `ORG/NAME/FILE` on the hub. Nothing in it is executed. Raises UsageError
    for weights that do not fit the teacher, DdxError for what cannot be read or written.
    """
    from ddx.importing.weights import read_file, student_network
    from ddx.sampling.card import write_card
    from ddx.teachers.components import parse_dtype
    from ddx.teachers.registry import load_teacher
    from ddx.teachers.unknown import holds_lora

    workspace, progress = workspace or Workspace(), progress or NullProgress()
    path = find_file(source)
    teacher = load_teacher(config.teacher, dtype="float32")
    notes = _notes(config, teacher)
    state = read_file(path, config.entry)
    stored = next(value.dtype for value in state.values() if value.is_floating_point())
    network = student_network(teacher, path, state, config)
    folder = config.out or workspace.new_student_path(teacher.name, f"imported-{path.stem}")
    if (folder / "model_index.json").exists():
        raise UsageError(f"{folder} holds a pipeline already", hint="give --out for another folder")
    dtype = stored if config.dtype == "auto" else parse_dtype(config.dtype, teacher.device)
    sampler: Any = config.sampler
    teacher.save_student(folder, network, dtype=dtype, sampler=sampler)
    record = {
        "kind": "student",
        "teacher": config.teacher,
        **teacher.facts(),
        "method": "imported",
        "imported_from": source,
        "imported_as": "LoRA" if holds_lora(state) else "weights",
        "max_steps": config.max_steps,
        **notes,
        "versions": versions(),
    }
    write_run(folder, record, finished=True)
    write_card(folder)
    progress.log(f"{source} as a student of {teacher.name}")
    return folder


def find_file(source: str) -> Path:
    """Return the file: of this disk, the only one of a folder, or of the hub. UsageError where there is none."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UsageError(f"{path} is no file of weights", hint=f"known: {', '.join(SUFFIXES)}")
        return path
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(found) == 1:
            return found[0]
        raise UsageError(f"{path} holds {len(found)} files of weights", hint="name the one to import")
    on_the_hub = _ON_THE_HUB.fullmatch(source)
    if on_the_hub is None:
        raise UsageError(
            f"there is no file {source}",
            hint="give a file, or ORG/NAME/FILE of the Hugging Face hub, with the file's name",
        )
    return _download(on_the_hub[1], on_the_hub[2])


def _download(repo: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(repo, name))
    except EntryNotFoundError as error:
        raise UsageError(
            f"{repo} has no file {name}", hint=f"https://huggingface.co/{repo}/tree/main lists them"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise DdxError(
            f"{name} of {repo} is not cached, and could not be downloaded: {error}",
            hint=f"run `hf download {repo} {name}` where there is a network",
        ) from error


def _notes(config: ImportConfig, teacher: Teacher) -> dict[str, Any]:
    """What decides how the student is called, beside its files."""
    notes: dict[str, Any] = {"sampler": config.sampler, "guidance": config.guidance}
    is_flow = teacher.process.name == "flow"
    if config.first_timestep is not None:
        last = getattr(teacher.process, "num_train_timesteps", 0) - 1
        if is_flow or config.first_timestep > last:
            reason = "has noise levels and no timesteps" if is_flow else f"has timesteps up to {last}"
            raise UsageError(
                f"first_timestep = {config.first_timestep}: {teacher.name} {reason}", hint="see --first-sigma"
            )
        notes["first_timestep"] = config.first_timestep
    if config.first_sigma is not None:
        if not is_flow:
            raise UsageError(f"first_sigma: {teacher.name} has timesteps", hint="see --first-timestep")
        notes["first_sigma"] = config.first_sigma
    return notes
