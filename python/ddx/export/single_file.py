"""A student as one checkpoint in the layout of the original, which diffusers' `from_single_file` and others read."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ddx.errors import UsageError
from ddx.sampling.student import StudentFolder
from ddx.teachers.families.table import FAMILIES


def require_single_file(student: StudentFolder) -> None:
    """Raise UsageError for a student of a family whose original checkpoints are not of this layout."""
    if student.family is None or not student.family.original_text:
        known = ", ".join(family.title for family in FAMILIES if family.original_text)
        raise UsageError(
            f"{student.name} is a {student.pipeline_class}, and single files are written of {known}",
            hint="--format diffusers writes a folder, and --format comfyui a LoRA for ComfyUI",
        )


def write_single_file(student: StudentFolder, out: Path, *, steps: int | None = None, dtype: str = "auto") -> None:
    """Write the UNet, in `dtype`, the autoencoder and the text encoders into one safetensors file.

    The scheduler has no place in it. Raises UsageError for another family, DdxError for a part that has no place.
    """
    from ddx.export.original_layout import merged, original_text, original_unet, original_vae
    from ddx.export.weights import DTYPES, cast, stored_weights
    from ddx.networks.lora_files import save_tensors
    from ddx.teachers.hub import read_json

    require_single_file(student)
    assert student.family is not None
    denoiser = (student.folder if steps is None else student.for_steps(steps)) / student.denoiser_part
    with contextlib.ExitStack() as stack:
        unet = stack.enter_context(stored_weights(denoiser))
        vae = stack.enter_context(stored_weights(student.folder / "vae"))
        config = read_json(denoiser / "config.json")
        pieces = [
            ((name, cast(value, DTYPES.get(dtype))) for name, value in original_unet(unet, config)),
            original_vae(vae),
        ]
        for part, prefix in student.family.original_text.items():
            folder = student.folder / part
            text = stack.enter_context(stored_weights(folder))
            pieces.append(original_text(text, read_json(folder / "config.json"), prefix))
        save_tensors(out, merged(pieces), {}, None)
