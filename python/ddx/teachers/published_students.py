"""The few-step students that others published: no teachers, whatever the name of their pipeline.

Their repositories are known by their ids, before anything is downloaded. A name that only looks like one is warned of.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ddx.errors import UsageError
from ddx.run_record import read_run

log = logging.getLogger("ddx.teachers")


@dataclass(frozen=True, kw_only=True)
class PublishedStudent:
    """Repositories of students of one kind, and the teacher to take in their place."""

    title: str
    ids: tuple[str, ...]  # on the hub, in lower case
    pattern: str  # of other names for it, in lower case with hyphens
    teacher: str = ""  # a name or a hub id; empty where its files are of several teachers
    file: str = ""  # what `ddx import` reads of it
    starts: bool = False  # whether `ddx distill --from-student` reads its repository


PUBLISHED_STUDENTS = (
    PublishedStudent(
        title="FLUX.1-schnell",
        ids=("black-forest-labs/flux.1-schnell",),
        pattern="schnell",
        teacher="flux1-dev",
    ),
    PublishedStudent(
        title="the distilled FLUX.2 klein 4B",
        ids=("black-forest-labs/flux.2-klein-4b",),
        pattern=r"klein-4b",
        teacher="flux2-klein-base-4b",
    ),
    PublishedStudent(
        title="the distilled FLUX.2 klein 9B",
        ids=("black-forest-labs/flux.2-klein-9b",),
        pattern=r"klein-9b",
        teacher="black-forest-labs/FLUX.2-klein-base-9B",
    ),
    PublishedStudent(
        title="Z-Image-Turbo",
        ids=("tongyi-mai/z-image-turbo",),
        pattern=r"z-?image-?turbo",
        teacher="z-image",
    ),
    PublishedStudent(
        title="Qwen-Image-Lightning",
        ids=("lightx2v/qwen-image-lightning",),
        pattern=r"qwen-?image.*lightning",
        teacher="qwen-image",
        file="lightx2v/Qwen-Image-Lightning/FILE",
    ),
    PublishedStudent(
        title="Stable Diffusion 3.5 Large Turbo",
        ids=("stabilityai/stable-diffusion-3.5-large-turbo",),
        pattern=r"(sd|diffusion)-?3\.?5?-large-turbo",
        teacher="sd35-large",
    ),
    PublishedStudent(
        title="Stable Diffusion 3.5 Medium Turbo",
        ids=("tensorart/stable-diffusion-3.5-medium-turbo",),
        pattern=r"(sd|diffusion)-?3\.?5?-medium-turbo",
        teacher="sd35-medium",
    ),
    PublishedStudent(
        title="SANA-Sprint 0.6B",
        ids=(
            "efficient-large-model/sana-sprint-0.6b-1024px-diffusers",
            "efficient-large-model/sana-sprint-0.6b-1024px",
        ),
        pattern=r"sprint-?0\.6b(?!.*teacher)",
        teacher="sana-600m-1024",
        starts=True,
    ),
    PublishedStudent(
        title="SANA-Sprint",
        ids=(
            "efficient-large-model/sana-sprint-1.6b-1024px-diffusers",
            "efficient-large-model/sana-sprint-1.6b-1024px",
        ),
        pattern="sprint(?!.*teacher)",  # those that it was distilled from are teachers
        teacher="sana-1600m",
        starts=True,
    ),
    PublishedStudent(
        title="PixArt-α LCM",
        ids=("pixart-alpha/pixart-lcm-xl-2-1024-ms",),
        pattern=r"pixart.*lcm",
        teacher="pixart-alpha",
    ),
    PublishedStudent(
        title="PixArt-α DMD",
        ids=("pixart-alpha/pixart-alpha-dmd-xl-2-512x512",),
        pattern=r"pixart.*dmd",
        teacher="PixArt-alpha/PixArt-XL-2-512x512",
    ),
    PublishedStudent(
        title="SDXL-Turbo",
        ids=("stabilityai/sdxl-turbo",),
        pattern=r"xl.*turbo",
        teacher="sdxl",
        file="stabilityai/sdxl-turbo/unet/FILE",
    ),
    PublishedStudent(
        title="SDXL-Lightning",
        ids=("bytedance/sdxl-lightning",),
        pattern=r"lightning",
        teacher="sdxl",
        file="ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet.safetensors",
    ),
    PublishedStudent(
        title="SD-Turbo",
        ids=("stabilityai/sd-turbo",),
        pattern=r"sd-?turbo",
        teacher="sd21",
    ),
    PublishedStudent(
        title="DMD2",
        ids=("tianweiy/dmd2",),
        pattern=r"dmd2",
        teacher="sdxl",
        file="tianweiy/DMD2/FILE",
    ),
    PublishedStudent(
        title="Hyper-SD",
        ids=("bytedance/hyper-sd",),
        pattern=r"hyper-?sd",
        file="ByteDance/Hyper-SD/FILE",
    ),
    PublishedStudent(
        title="LCM-LoRA for SDXL",
        ids=("latent-consistency/lcm-lora-sdxl",),
        pattern=r"lcm.*xl",
        teacher="sdxl",
        file="latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors",
    ),
    PublishedStudent(
        title="LCM-LoRA for Stable Diffusion 1.5",
        ids=("latent-consistency/lcm-lora-sdv1-5",),
        pattern=r"lcm",
        teacher="sd15",
        file="latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors",
    ),
)
_FEW_STEPS = re.compile(r"(^|[-./])(turbo|lightning|schnell|hyper|lcm|sprint|dmd2?|tcd|[1248]-?steps?)([-./]|$)")


def refuse_published(repo: str) -> None:
    """Raise UsageError for the hub id of a published student; warn of a name that looks like one."""
    key = _key(repo)
    known = next((student for student in PUBLISHED_STUDENTS if key in student.ids), None)
    if known is not None:
        raise _already(repo, known, f"hf download {repo} --local-dir FOLDER")
    warn_of_name(repo)


def warn_of_name(name: str) -> None:
    """Warn of a hub id, or of the path of a file, that looks like a student's."""
    key = _key(name)
    if _FEW_STEPS.search(key.rpartition("/")[2]) and "teacher" not in key:
        near = next((student for student in PUBLISHED_STUDENTS if re.search(student.pattern, key)), None)
        instead = f", perhaps as that of {near.title}, whose teacher is {near.teacher}" if near else ""
        log.warning("the name of %s is that of a few-step student%s: a teacher draws in many steps", name, instead)


def published_name(text: str) -> UsageError | None:
    """Return the error for a short name that a published student goes by."""
    key = _key(text)
    known = next((student for student in PUBLISHED_STUDENTS if re.search(student.pattern, key)), None)
    return None if known is None else _already(text, known)


def refuse_student_folder(folder: Path, name: str | None = None) -> None:
    """Raise UsageError for a folder, or what is on the hub as `name`, whose run.json says that it is ddx's student."""
    record = read_run(folder)
    if record is not None and record.get("kind") == "student":
        teacher = record.get("teacher", "NAME")
        go_on = "" if name else f"; `ddx distill --from-student {folder}` goes on with the student's weights"
        raise UsageError(
            f"{name or folder} is a student, not a teacher: it was distilled from {teacher}",
            hint=f"give --teacher {teacher}{go_on}",
        )


def student_already(name: str, sign: str, hint: str) -> UsageError:
    """Return the error for a pipeline whose files say that it is a student."""
    return UsageError(f"{name} {sign}: it is a student already", hint=hint)


def _already(text: str, student: PublishedStudent, download: str | None = None) -> UsageError:
    cures = [f"--teacher {student.teacher}"] if student.teacher else []
    if student.file:
        cures.append(
            f"`ddx import {student.file} --teacher {student.teacher or 'NAME'}` makes a student folder of it, which "
            "`ddx distill --from-student` starts from"
        )
    if student.starts:
        cures.append(f"`ddx distill --from-student {text if download else 'ID'}` starts from its weights")
    if download and not student.file:
        cures.append(f"to take it all the same: `{download}`, then --teacher FOLDER")
    return UsageError(f"{text} is {student.title}, which is a student already", hint="; ".join(cures))


def _key(text: str) -> str:
    return text.lower().replace("_", "-")
