"""A student as one checkpoint in the layout of the original, which diffusers' `from_single_file` and others read."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ddx.errors import UsageError
from ddx.sampling.student import StudentFolder
from ddx.teachers.families.table import FAMILIES, Family


def require_single_file(student: StudentFolder) -> None:
    """Raise UsageError for a student of a family whose original checkpoints ddx cannot write."""
    family = student.family
    original = None if family is None else family.original
    if family is not None and (family.original_text or (original is not None and original.unwritable is None)):
        return
    known = ", ".join(row.title for row in FAMILIES if _is_written(row))
    reason = "" if original is None else f", and its original checkpoints cannot be written: {original.unwritable}"
    raise UsageError(
        f"{student.name} is a {student.pipeline_class}{reason}; single files are written of {known}",
        hint="--format diffusers writes a folder, and --format comfyui a LoRA for ComfyUI",
    )


def _is_written(family: Family) -> bool:
    return bool(family.original_text) or (family.original is not None and family.original.unwritable is None)


def write_single_file(student: StudentFolder, out: Path, *, steps: int | None = None, dtype: str = "auto") -> None:
    """Write a UNet, in `dtype`, with the autoencoder and the text encoders into one safetensors file; or a transformer.

    The scheduler has no place in it. Raises UsageError for another family, DdxError for a part that has no place.
    """
    from ddx.export.original_layout import merged, original_text, original_transformer, original_unet, original_vae
    from ddx.export.weights import DTYPES, cast, stored_weights
    from ddx.networks.lora_files import save_tensors
    from ddx.teachers.hub import read_json

    require_single_file(student)
    assert student.family is not None
    denoiser = (student.folder if steps is None else student.for_steps(steps)) / student.denoiser_part
    with contextlib.ExitStack() as stack:
        if student.family.original is not None:
            transformer = stack.enter_context(stored_weights(denoiser))
            tensors = original_transformer(transformer, student.family.original)
            state = {name: cast(value, DTYPES.get(dtype)) for name, value in tensors}
            save_tensors(out, state, {}, None)
            return
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
