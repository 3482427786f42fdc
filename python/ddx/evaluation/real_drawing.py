"""Drawing the rows of a comparison: the teacher and the students, at every guidance and number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.data.sampler import check_data, open_sampler
from ddx.device import find_device
from ddx.errors import DdxError
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.drawn import Requests, draw_into
from ddx.evaluation.measure_config import MeasureConfig
from ddx.evaluation.real_rows import Row, Variant
from ddx.progress import Progress
from ddx.workspace import Workspace

if TYPE_CHECKING:
    from ddx.sampling.pipeline import StudentPipeline

DIVERSITY_SEED = 1_000_003  # the first seed of the pictures that measure diversity: apart from the others'
TEACHER_STEPS = (20, 4, 2, 1)  # what `ddx evaluate` draws without real pictures; beside them the first alone


def draw_rows(
    variants: Sequence[Variant],
    measure: MeasureConfig,
    students: Sequence[Path],
    prompts: tuple[str, ...] | None,
    workspace: Workspace,
    progress: Progress,
) -> list[Row]:
    """Return a row for each model, guidance and number of steps of each variant, drawn as far as possible."""
    rows: list[Row] = []
    for variant in variants:
        for kind, pipeline in open_models(variant.config, students, workspace, progress):
            steps = variant.config.steps if kind == "student" else variant.config.teacher_steps
            if kind == "teacher" and steps == TEACHER_STEPS:
                steps = TEACHER_STEPS[:1]
            scales = variant.config.guidance or (None,)
            for guidance in scales:
                for count in steps:
                    row = Row(
                        model=pipeline.files.name, kind=kind, steps=count, guidance=guidance, changed=variant.changed
                    )
                    rows.append(row)
                    try:
                        _draw(row, pipeline, variant.config, measure, prompts, workspace, progress)
                    except DdxError as error:
                        if len(rows) == 1 and len(scales) * len(steps) * len(variants) * max(len(students), 1) == 1:
                            raise
                        row.error = error.message
                        progress.log(f"{row.title}: {error.message}")
    return rows


def open_models(
    config: EvaluateConfig, students: Sequence[Path], workspace: Workspace, progress: Progress
) -> Iterator[tuple[str, StudentPipeline]]:
    """Yield the teacher, if one is named, then the students; one is open at a time."""
    from ddx.sampling.pipeline import StudentPipeline
    from ddx.sampling.run import choose_student
    from ddx.sampling.teacher_folder import TeacherFolder
    from ddx.teachers.components import parse_dtype
    from ddx.teachers.registry import load_teacher

    dtype = None if config.dtype == "auto" else config.dtype
    if config.teacher is not None:
        opened = load_teacher(config.teacher, dtype=parse_dtype(dtype, find_device(config.device)))
        check_data(config.sampler, config.data)
        sampler = open_sampler(config.sampler, opened, workspace, data=config.data, progress=progress)
        folder = TeacherFolder(opened)
        yield "teacher", StudentPipeline(folder, device=config.device, dtype=config.dtype, sampler=sampler)
    named = list(students)
    if not named and (config.student is not None or config.teacher is None):
        named = [choose_student(config.student, workspace)]
        if config.student is None:
            progress.log(f"student: {named[0]} (the newest)")
    for student in named:
        yield "student", StudentPipeline(choose_student(student, workspace), device=config.device, dtype=config.dtype)


def _draw(
    row: Row,
    pipeline: StudentPipeline,
    config: EvaluateConfig,
    measure: MeasureConfig,
    prompts: tuple[str, ...] | None,
    workspace: Workspace,
    progress: Progress,
) -> None:
    from ddx.sampling.prompts import standard_prompts

    if row.guidance is not None:
        pipeline.set_guidance(row.guidance)
    row.guidance = pipeline.guidance
    base = prompts or standard_prompts(pipeline.files.record)
    row.prompts = tuple(base[i % len(base)] for i in range(config.num_images))
    row.first_seed = first = config.seed * 1_000_000
    root, size, steps = workspace.root / "cache" / "drawn", config.pixels, row.steps or 1
    requests = Requests(
        prompts=row.prompts, seeds=tuple(range(first, first + config.num_images)), size=size, steps=steps
    )
    chosen = list(dict.fromkeys(row.prompts))[: config.diversity_captions]
    repeated = Requests(
        prompts=tuple(prompt for prompt in chosen for _ in range(config.diversity_seeds)),
        seeds=tuple(DIVERSITY_SEED + first + i for _ in chosen for i in range(config.diversity_seeds)),
        size=size,
        steps=steps,
    )
    asks = [requests, repeated] if "lpips" in measure.names else [requests]
    progress.start(f"draw: {row.title}", sum(len(one.prompts) for one in asks), "pictures")
    own = {"sampler": config.sampler, **pipeline.sampler.identity()} if row.kind == "teacher" else {}
    drawn = [draw_into(root, pipeline, one, config.batch_size, progress, **own) for one in asks]
    progress.finish()
    row.drawn, row.repeated = drawn[0], drawn[1] if len(drawn) > 1 else None
