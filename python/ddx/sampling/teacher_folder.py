"""A teacher's pipeline as something that `ddx sample` draws with: its own scheduler, its own guidance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.sampling.student import StudentFolder
from ddx.teachers.size import Size, height_and_width

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

STEPS = 20  # of a teacher that is not told how many


class TeacherFolder(StudentFolder):
    """What the files of an opened teacher say. Its weights need not be here until it draws."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.folder = teacher.folder
        self.index = teacher.source_info.index
        self.pipeline_class = teacher.source_info.pipeline
        self.denoiser_part = teacher.denoiser_part
        local = teacher.revision in ("local", "bundled")
        self.record: dict[str, Any] = {
            "kind": "teacher",
            "validation_prompts": teacher.validation_prompts,
            "teacher_fingerprint": {} if local else {"weights": f"{teacher.source}@{teacher.revision}"},
        }

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self.teacher.name

    @property
    def remark(self) -> None:
        """Nothing is to be said: it is what it is meant to be."""
        return None

    def for_steps(self, steps: int) -> Path:
        """Return its folder, which draws in any number of steps."""
        return self.folder

    @property
    def guidance(self) -> float:
        """Its default guidance."""
        return self.teacher.default_guidance

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures that it was trained on."""
        return self.teacher.default_resolution

    @property
    def trained_steps(self) -> int:
        """No number of steps is too many for it."""
        return 2**31

    def component_dtypes(self, dtype: str = "auto") -> dict[str, str]:
        """Return the torch dtype by component; "auto" is the one that it was opened in."""
        if dtype == "auto":
            dtype = {"bfloat16": "bf16", "float16": "fp16"}.get(str(self.teacher.dtype).split(".")[-1], "float32")
        return super().component_dtypes(dtype)

    def components(self) -> dict[str, Any]:
        """Return the parts of the pipeline, loaded on the host; a part that a drawing does without is None."""
        parts: dict[str, Any] = dict.fromkeys(self.teacher.left_out)
        for part in self.teacher.part_classes:
            if part.startswith("tokenizer"):
                parts[part] = self.teacher.tokenizer(part)
            elif part.startswith("text_encoder"):
                parts[part] = self.teacher.text_encoder(part)
        return {**parts, "vae": self.teacher.vae(), self.denoiser_part: self.teacher.network()}

    def call_arguments(
        self, steps: int, *, resolution: Size | None = None, guidance: float | None = None
    ) -> dict[str, Any]:
        """Return the keyword arguments, beside prompt and generator, of the pipeline's call for `steps` steps."""
        height, width = height_and_width(resolution or self.resolution)
        guided = self.call.guided(self.guidance if guidance is None else guidance)
        return {"num_inference_steps": steps, **guided, "height": height, "width": width, **self.call.always}
