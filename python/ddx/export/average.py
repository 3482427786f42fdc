"""`ddx average`: a student whose weights are the mean of those of several (Wortsman et al. 2022, arXiv:2203.05482).

Students that began with the same weights and went different ways are connected: the mean of their weights draws too,
and often better than any of them, for what each learned by chance averages out.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ddx.errors import UsageError, cannot_write
from ddx.export.config import AverageConfig
from ddx.export.files import student_files
from ddx.export.weights import stored_weights
from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE
from ddx.progress import NullProgress, Progress
from ddx.run_record import versions, write_run
from ddx.sampling.card import CARD_NAME, SCORES_NAME, write_card
from ddx.sampling.run import choose_student
from ddx.sampling.student import StudentFolder
from ddx.workspace import Workspace, is_vacant

# What a run says of itself, and what is not true of an average of several.
_OF_A_RUN = frozenset((
    *("store", "synthetic_share", "images_seen", "seed", "best", "watch", "alarms", "stopped", "seconds", "history"),
    *("skipped_steps", "peak_memory_bytes", "config", "preset_settings", "reward", "reward_revision", "reward_weight"),
))  # fmt: skip
_NOT_COPIED = (DIFFUSERS_FILE, COMFYUI_FILE, SCORES_NAME, CARD_NAME)  # and run.json, which is written anew
_HOW_IT_DRAWS = (
    *("sampler", "guidance", "max_steps", "first_sigma", "first_timestep", "student_sigmas", "student_timesteps"),
    "step_folders",
)


def average(
    students: Sequence[Path],
    config: AverageConfig,
    *,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the average and return its folder. It is drawn as the first of the students is.

    Sums are float64, weights are saved in the dtype of the first student's. One file of weights is in memory at a time.
    Raises UsageError for students that cannot be averaged, DdxError for what cannot be read or written.
    """
    workspace, progress = workspace or Workspace(), progress or NullProgress()
    found, shares, out = plan(students, config, workspace)
    for other in found[1:]:
        differs = [name for name in _HOW_IT_DRAWS if other.record.get(name) != found[0].record.get(name)]
        if differs:
            progress.log(f"{other.name} has another {', '.join(differs)}: the average is drawn as {found[0].name} is")
    with _put_in_place(out) as hidden:
        for name in student_files(found[0]):
            if name.name in _NOT_COPIED:
                continue
            (hidden / name).parent.mkdir(parents=True, exist_ok=True)
            if name.parent.name == found[0].denoiser_part and name.suffix == ".safetensors":
                _average_file(found, shares, name, hidden / name)
            else:
                shutil.copyfile(found[0].folder / name, hidden / name)
        write_run(hidden, _record(found, shares), finished=True)
    write_card(out)
    return out


def plan(
    students: Sequence[Path], config: AverageConfig, workspace: Workspace
) -> tuple[list[StudentFolder], list[float], Path]:
    """Return the students, the share of each, which sum to 1, and where the average goes. Raises as `average` does."""
    if len(students) < 2:
        raise UsageError(
            f"an average is of two students or more: {len(students)} named",
            hint="name them: ddx average runs/students/A runs/students/B",
        )
    found = [StudentFolder(choose_student(student, workspace)) for student in students]
    weights = config.weights or (1.0,) * len(found)
    if len(weights) != len(found):
        raise UsageError(
            f"weights = {','.join(f'{w:g}' for w in weights)}: {len(weights)} for {len(found)} students",
            hint="give one for each, such as --weights 2,1, or none for equal ones",
        )
    for other in found[1:]:
        _require_alike(found[0], other)
    name = str(found[0].record.get("teacher", found[0].name))
    out = config.out or workspace.new_student_path(name, "average")
    if not is_vacant(out):
        raise UsageError(f"{out} exists", hint="give another --out, or delete it")
    return found, [weight / math.fsum(weights) for weight in weights], out


def _require_alike(first: StudentFolder, other: StudentFolder) -> None:
    """Raise UsageError for students of two teachers, or whose weights do not fit each other."""
    ours, theirs = (student.record.get("teacher_fingerprint") or {} for student in (first, other))
    differs = [key for key in ("family", "weights") if key in ours and key in theirs and ours[key] != theirs[key]]
    if differs or first.prediction != other.prediction:
        raise UsageError(
            f"{first.folder} and {other.folder} are students of two teachers", hint="average students of one teacher"
        )
    folders = first.record.get("step_folders", {})
    if folders != other.record.get("step_folders", {}):
        raise UsageError(
            f"{first.folder} and {other.folder} have other weights for each number of steps, and not the same numbers",
            hint="average students that have the same ones",
        )
    for folder in {Path("."), *map(Path, folders.values())}:
        part = folder / first.denoiser_part
        with stored_weights(first.folder / part) as mine, stored_weights(other.folder / part) as its:
            ours, theirs = ({name: weights.shape(name) for name in weights} for weights in (mine, its))
            odd = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            if odd:
                raise UsageError(
                    f"the weights of {first.folder / part} and {other.folder / part} do not fit each other: {min(odd)}",
                    hint="average students of one teacher",
                )


def _average_file(students: Sequence[StudentFolder], shares: Sequence[float], name: Path, target: Path) -> None:
    import torch

    from ddx.networks.lora_files import save_tensors

    tensors = {}
    with ExitStack() as opened:
        file = opened.enter_context(stored_weights((students[0].folder / name).parent, only=students[0].folder / name))
        others = [opened.enter_context(stored_weights((other.folder / name).parent)) for other in students[1:]]
        for key in file:
            value = file[key]
            if value.is_floating_point():
                mean = torch.zeros(value.shape, dtype=torch.float64)
                for share, weights in zip(shares, (file, *others), strict=True):
                    mean += share * weights[key].double()
                value = mean.to(value.dtype)
            tensors[key] = value
    save_tensors(target, tensors, {}, None)


def _record(students: Sequence[StudentFolder], shares: Sequence[float]) -> Mapping[str, Any]:
    kept = {key: value for key, value in students[0].record.items() if key not in _OF_A_RUN}
    methods = dict.fromkeys(str(student.record.get("method", "unknown")) for student in students)
    of = [
        {
            "student": str(student.folder),
            "share": share,
            **{key: student.record[key] for key in ("method", "seed", "images_seen") if key in student.record},
        }
        for student, share in zip(students, shares, strict=True)
    ]
    return {"kind": "student", **kept, "method": ", ".join(methods), "average_of": of, "versions": versions()}


@contextmanager
def _put_in_place(out: Path) -> Iterator[Path]:
    """Within, write into a hidden folder; then it has its name. A failure leaves nothing."""
    hidden = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        try:
            hidden.mkdir(parents=True)
            yield hidden
            if out.is_dir():  # empty
                out.rmdir()
            hidden.rename(out)
        except OSError as error:
            raise cannot_write(out, error) from error
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
