"""The programs of a student's model card: they need diffusers alone, and draw what `ddx sample` draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ddx.sampling.pipeline import dtype_keyword
from ddx.sampling.student import StudentFolder

SNIPPET_SEED = 0


def snippet(student: StudentFolder, prompt: str, *, steps: int = 1, seed: int = SNIPPET_SEED) -> str:
    """Return a Python program that needs diffusers alone, is run inside the student's folder, and writes `out.png`.

    Without kernels of ours its picture is bit for bit that of `ddx sample` with the same prompt, steps and seed on the
    same device.
    """
    opening = [
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained(".", {_dtype(student)}, use_safetensors=True)',
    ]
    return _program(opening, student, prompt, steps, seed)


def lora_snippet(student: StudentFolder, prompt: str, *, steps: int = 1, seed: int = SNIPPET_SEED) -> str:
    """Return a program like :func:`snippet` that opens the teacher and puts the student's low-rank file onto it."""
    bundled, where = _teacher_location(student.record)
    opening = [
        f"from diffusers import DiffusionPipeline, {student.scheduler_class}",
        *(["from ddx.teachers.registry import bundled_folder"] if bundled else []),
        "",
        f"pipeline = DiffusionPipeline.from_pretrained({where}, {_dtype(student)}, use_safetensors=True)",
        f'pipeline.scheduler = {student.scheduler_class}.from_pretrained(".", subfolder="scheduler")',
        'pipeline.load_lora_weights(".")',
    ]
    return _program(opening, student, prompt, steps, seed)


def _program(opening: Sequence[str], student: StudentFolder, prompt: str, steps: int, seed: int) -> str:
    arguments = {"prompt": prompt, **student.call_arguments(steps)}
    lines = [f"    {name}={literal(value)}," for name, value in arguments.items()]
    generator, seeded = f'torch.Generator("cpu").manual_seed({seed})', []
    if not student.call.seeds_steps:  # the noise of a later step would come from torch's global generator
        seeded = [
            f"generator = {generator}",
            "pipeline.scheduler.step = partial(pipeline.scheduler.step, generator=generator)",
        ]
        generator = "generator"
    return "\n".join(
        [
            *(["from functools import partial", ""] if seeded else []),
            "import torch",
            *opening,
            'pipeline.to("cuda" if torch.cuda.is_available() else "cpu")',
            *seeded,
            "image = pipeline(",
            *lines,
            f"    generator={generator},",
            ").images[0]",
            'image.save("out.png")',
        ]
    )


def _dtype(student: StudentFolder) -> str:
    dtypes = student.component_dtypes()
    dtype = f"torch.{dtypes['default']}"
    if len(dtypes) > 1:
        dtype = "{" + ", ".join(f'"{part}": torch.{name}' for part, name in dtypes.items()) + "}"
    return f"{dtype_keyword()}={dtype}"


def _teacher_location(record: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the teacher is inside ddx, and the argument that opens it."""
    source, revision = str(record.get("teacher_source", "")), record.get("teacher_revision")
    if revision == "bundled":
        return True, f"bundled_folder({literal(source)})"
    if revision in (None, "local"):
        return False, literal(source)
    return False, f"{literal(source)}, revision={literal(revision)}"


def literal(value: Any) -> str:
    """Return a Python literal of the value; texts in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
