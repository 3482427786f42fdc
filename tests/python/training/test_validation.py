"""Validation prompts are drawn at the student's own guidance, whatever is added to its method."""

from __future__ import annotations

from pathlib import Path

from ddx.methods.lcm import LCMConfig
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.registry import load_method
from ddx.teachers.registry import load_teacher
from ddx.watch.validation import Validation, innermost


def test_the_teacher_is_drawn_at_the_students_guidance(teacher_folder: Path) -> None:
    teacher = load_teacher(teacher_folder)
    config = LCMConfig(guidance_min=1.0, guidance_max=6.0, export_guidance=2.5)
    plain = load_method("lcm", config, teacher)
    judged = load_method("lcm", config, teacher, AddedDiscriminatorConfig(gan_weight=0.1))
    assert innermost(judged) is not judged and innermost(plain) is plain
    for method in (plain, judged):
        null = teacher.null_condition()
        drawn = Validation(method, [null], null, teacher.latent_shape(None), most_steps=1, seed=0, stream=-1)
        assert drawn.guidance == 2.5
