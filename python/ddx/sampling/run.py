"""`ddx sample`: which student or teacher, which prompts, then a PNG for each picture, a grid and a page."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.config import to_dict
from ddx.data.sampler import check_data, open_sampler
from ddx.errors import DdxError, cannot_write
from ddx.progress import NullProgress, Progress
from ddx.run_record import versions, write_run
from ddx.sampling.config import SampleConfig
from ddx.sampling.prompts import read_prompts, standard_prompts
from ddx.sampling.sizes import size_of_picture, unseen
from ddx.teachers.samplers.names import OWN
from ddx.teachers.samplers.sampler import OWN_SAMPLER
from ddx.teachers.size import Size, shown_size
from ddx.workspace import Workspace

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ddx.offload.keeping import Keeping
    from ddx.sampling.student import StudentFolder


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture on the disk."""

    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """What `sample` wrote.

    peak_memory_bytes: of the tensors on a GPU, as torch's allocator measured it; None on a processor.
    """

    student: Path  # or the teacher's folder
    teacher: str | None
    sampler: str  # of the teacher
    folder: Path
    steps: int
    guidance: float | None
    pictures: tuple[DrawnPicture, ...]
    grid: Path
    page: Path
    seconds_per_picture: float
    peak_memory_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {
            "student": None if self.teacher else str(self.student),
            **({"teacher": self.teacher, "sampler": self.sampler} if self.teacher else {}),
            "folder": str(self.folder),
            "steps": self.steps,
            "guidance": self.guidance,
            "images": [{"prompt": p.prompt, "seed": p.seed, "path": str(p.path)} for p in self.pictures],
            "grid": str(self.grid),
            "page": str(self.page),
            "seconds_per_picture": self.seconds_per_picture,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def choose_student(student: Path | None, workspace: Workspace) -> Path:
    """Return the student's folder: the given one, one of that name in the workspace, or the newest finished one."""
    if student is not None:
        named = workspace.root / "students" / student
        return named if not student.exists() and named.is_dir() else student
    newest = workspace.newest_student()
    if newest is not None:
        return newest
    unfinished = workspace.students()
    if unfinished:
        raise DdxError(
            f"the student in {unfinished[0].path} is not finished",
            hint="run the same `ddx distill` command again: it goes on where it stopped",
        )
    raise DdxError(
        f"there is no student in {workspace.root}",
        hint="make one with `ddx distill --method lcm --teacher sana-600m`, or name one with --student",
    )


def open_files(config: SampleConfig, workspace: Workspace, *, weights: bool = True) -> StudentFolder:
    """Return what the files of the student or the teacher say, without loading a weight.

    Without `weights` a named teacher that is not here is known by the configs in this package.
    """
    from ddx.sampling.student import StudentFolder

    check_data(config.sampler, config.data)
    if config.teacher is None:
        return StudentFolder(choose_student(config.student, workspace))
    from ddx.device import find_device
    from ddx.sampling.teacher_folder import TeacherFolder
    from ddx.teachers.components import parse_dtype
    from ddx.teachers.family_of import name_of, weights_are_here
    from ddx.teachers.registry import TEACHERS, configs_of, load_teacher
    from ddx.teachers.samplers.sampler import check_sampler

    dtype = parse_dtype(None if config.dtype == "auto" else config.dtype, find_device(config.device))
    side = config.resolution
    if not weights and name_of(config.teacher) in TEACHERS and not weights_are_here(config.teacher):
        teacher = configs_of(name_of(config.teacher), dtype=dtype, resolution=side)
    else:
        teacher = load_teacher(config.teacher, dtype=dtype, resolution=side)
    check_sampler(config.sampler, teacher)
    return TeacherFolder(teacher)


def plan(config: SampleConfig, workspace: Workspace) -> dict[str, Any]:
    """Return what `sample` would do, without loading a weight: values that JSON can hold."""
    files = open_files(config, workspace, weights=False)
    files.for_steps(config.steps)
    asked = config.pixels
    count = len(_prompts(config, files.record)) * config.num_images
    drawn = dict.fromkeys(size_of_picture(files.record, n, asked) or files.resolution for n in range(count))
    weights = sum(file.stat().st_size for file in files.folder.glob("*/*.safetensors"))
    return {
        **({"student": str(files.folder)} if config.teacher is None else {"teacher": config.teacher}),
        **({} if config.teacher is None else {"sampler": config.sampler}),
        "out": str(_out(config, files, workspace)),
        "pictures": count,
        "steps": config.steps,
        "guidance": config.guidance or files.guidance,
        "resolution": config.resolution or files.resolution,
        "size": ", ".join(map(shown_size, drawn)),
        **({"memory_bytes": weights} if weights else {}),
        "call": files.call_arguments(config.steps, resolution=asked, guidance=config.guidance),
    }


def _out(config: SampleConfig, files: StudentFolder, workspace: Workspace) -> Path:
    return config.out or workspace.sample_path(files.name)


def _prompts(config: SampleConfig, record: Mapping[str, Any]) -> tuple[str, ...]:
    if config.prompt:
        return config.prompt
    return read_prompts(config.prompts) if config.prompts else standard_prompts(record)


def sample(
    config: SampleConfig,
    workspace: Workspace,
    progress: Progress | None = None,
    *,
    keeping: Keeping | None = None,
) -> SampleResult:
    """Draw what `config` asks for and return where it is. Raises UsageError and DdxError for what cannot be drawn.

    keeping: what waits on the host, as `ddx.memory.draw_plan` chose it for `config.memory` (None: nothing).
    """
    from ddx.sampling.pipeline import StudentPipeline
    from ddx.sampling.teacher_folder import TeacherFolder

    progress = progress or NullProgress()
    files = open_files(config, workspace)
    folder = files.folder
    prompts = _prompts(config, files.record)
    if config.student is None and config.teacher is None:
        progress.log(f"student: {folder} (the newest)")
    if files.remark:
        progress.log(files.remark)
    sampler = OWN_SAMPLER
    if isinstance(files, TeacherFolder):
        sampler = open_sampler(config.sampler, files.teacher, workspace, data=config.data, progress=progress)
    if config.steps > files.trained_steps:
        progress.log(f"{config.steps} steps: the student was made for 1 to {files.trained_steps}; more seldom help")
    student = StudentPipeline(
        files if isinstance(files, TeacherFolder) else folder,
        device=config.device,
        dtype=config.dtype,
        keeping=keeping,
        prompts=workspace.root / "prompts",
        sampler=sampler,
    )
    if config.guidance is not None:
        student.set_guidance(config.guidance)
    if (warning := unseen(files.record, config.pixels)) is not None:
        progress.log(warning)
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            progress.log(f"prompt {number} is empty: it is drawn without a text")
        elif (cut := student.cut(prompt)) is not None:
            progress.log(f"prompt {number} is too long: {cut}")

    out = _out(config, files, workspace)
    requests = [(prompt, config.seed + i) for prompt in prompts for i in range(config.num_images)]
    done: dict[int, tuple[DrawnPicture, Image]] = {}
    _forget_peak(student.device)
    student.read(prompts, config.steps)
    progress.start("sample", len(requests), "pictures")
    begun = time.perf_counter()
    for size, numbers in _batches(config, files.record, len(requests)):
        new = student.draw(
            [requests[number][0] for number in numbers],
            [requests[number][1] for number in numbers],
            config.steps,
            resolution=size,
            together=config.batch_size is not None,
        )
        for number, picture in zip(numbers, new, strict=True):
            prompt, seed = requests[number]
            path = out / _file_name(number, prompt, config.steps, seed)
            _save(picture, path)
            done[number] = DrawnPicture(prompt=prompt, seed=seed, path=path), picture
        progress.advance(len(new))
    progress.finish()
    seconds = (time.perf_counter() - begun) / len(requests)
    drawn, pictures = zip(*(done[number] for number in range(len(requests))), strict=True)
    grid, page = _present(out, files.name, config, student.guidance, drawn, pictures)
    result = SampleResult(
        student=folder,
        teacher=config.teacher,
        sampler=config.sampler,
        folder=out,
        steps=config.steps,
        guidance=student.guidance,
        pictures=drawn,
        grid=grid,
        page=page,
        seconds_per_picture=seconds,
        peak_memory_bytes=_peak(student.device),
    )
    record = {"kind": "samples", **result.to_dict(), "config": to_dict(config), "versions": versions()}
    write_run(out, record, finished=True)
    return result


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _batches(config: SampleConfig, record: Mapping[str, Any], count: int) -> Iterator[tuple[Size | None, list[int]]]:
    """Yield the size and the numbers of the pictures that are drawn together, or alone where no batch is asked for."""
    if config.batch_size is None:
        yield from ((size_of_picture(record, number, config.pixels), [number]) for number in range(count))
        return
    by_size: dict[Size | None, list[int]] = {}
    for number in range(count):
        by_size.setdefault(size_of_picture(record, number, config.pixels), []).append(number)
    for size, numbers in by_size.items():
        for start in range(0, len(numbers), config.batch_size):
            yield size, numbers[start : start + config.batch_size]


def _present(
    out: Path,
    name: str,
    config: SampleConfig,
    guidance: float | None,
    drawn: Sequence[DrawnPicture],
    pictures: Sequence[Image],
) -> tuple[Path, Path]:
    from ddx.sampling.grid import save_grid
    from ddx.sampling.page import Shown, gallery_page

    columns = config.num_images if 1 < config.num_images <= 16 and len(drawn) > config.num_images else None
    grid = save_grid(out / "grid.png", pictures, columns=columns)
    shown = [
        Shown(picture=picture, prompt=item.prompt, seed=item.seed, link=item.path.name)
        for item, picture in zip(drawn, pictures, strict=True)
    ]
    steps = "one step" if config.steps == 1 else f"{config.steps} steps"
    kind, held = ("student", "guidance in the weights") if config.teacher is None else ("teacher", "guidance")
    facts = {kind: name, "steps": str(config.steps), "versions": _versions_line()}
    if guidance is not None:
        facts[held] = f"{guidance:g}"
    if config.sampler != OWN:
        facts["sampler"] = config.sampler
    count = "1 picture" if len(drawn) == 1 else f"{len(drawn)} pictures"
    page = gallery_page(out / "index.html", f"{name}, {steps}", f"{count} by {name} in {steps} each.", shown, facts)
    return grid, page


def _versions_line() -> str:
    found = versions()
    return ", ".join(f"{package} {found[package]}" for package in ("ddx", "diffusers", "torch") if package in found)


def _file_name(number: int, prompt: str, steps: int, seed: int) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-")
    return f"{number:03d}-{words or 'prompt'}-{steps}step-seed{seed}.png"


def _save(picture: Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise cannot_write(path, error) from error
