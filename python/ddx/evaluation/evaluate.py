"""`ddx evaluate`: teacher and student draw the same prompts from the same noise, and are scored in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddx.config import to_dict
from ddx.data.sampler import check_data, open_sampler
from ddx.device import find_device
from ddx.errors import DdxError
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.drawing import Drawn, Painter, Requests
from ddx.evaluation.features import VERSION, extract
from ddx.evaluation.report import write_report
from ddx.evaluation.results import EvaluationResult, ModelResult, TestSet
from ddx.evaluation.scores import are_scenes, scene_scores
from ddx.metrics.diversity import prompt_variance
from ddx.metrics.frechet import frechet_distance
from ddx.metrics.table import METRICS, Against, Measured
from ddx.progress import NullProgress, Progress
from ddx.run_record import versions
from ddx.sampling.prompts import read_prompts
from ddx.sampling.sizes import shown_sizes, trained_sizes, unseen
from ddx.teachers.size import shown_size
from ddx.workspace import Workspace

if TYPE_CHECKING:
    from ddx.sampling.pipeline import StudentPipeline
    from ddx.teachers.base import Teacher
    from ddx.teachers.samplers.sampler import TeacherSampler
    from ddx.teachers.size import Size

REFERENCES_PER_PROMPT = 4
DIVERSITY_SEED = 1_000_003  # the first seed of the pictures that measure diversity: apart from the others'


def evaluate(
    config: EvaluateConfig, workspace: Workspace | None = None, progress: Progress | None = None
) -> EvaluationResult:
    """Score the teacher and the student, write the report, and bring the student's model card up to date.

    Without a student in the workspace (and none named) the teacher alone is scored. Raises UsageError and DdxError for
    what cannot be opened or drawn.
    """
    from ddx.sampling.pipeline import StudentPipeline

    workspace, progress = workspace or Workspace(), progress or NullProgress()
    folder, teacher = open_both(config, workspace, progress)
    check_data(config.sampler, config.data)
    sampler = open_sampler(config.sampler, teacher, workspace, data=config.data, progress=progress)
    student = None if folder is None else StudentPipeline(folder, device=config.device, dtype=config.dtype)
    resolution = config.pixels or (student.files.resolution if student else teacher.default_resolution)
    if student is not None:
        _say_size(student.files.record, config.pixels, resolution, progress)
    tests = make_test_set(config, teacher, resolution)
    prompts = (*tests.prompts, *tests.diversity_prompts)
    unique = list(dict.fromkeys(prompts))
    for number, prompt in enumerate(unique if config.prompts is not None else (), start=1):
        if (too_long := teacher.cut(prompt)) is not None:
            progress.log(f"prompt {number} is too long: {too_long}")
    conditions = dict(zip(unique, teacher.encode_text(unique), strict=True))
    requests = Requests(
        prompts=prompts,
        seeds=(*tests.seeds, *tests.diversity_seeds),
        conditions=[conditions[prompt] for prompt in prompts],
        null=teacher.null_condition(),
        resolution=resolution,
    )
    teacher.unload("text_encoder")
    guidances = config.guidance or (teacher.default_guidance,)
    num_draws = len(config.teacher_steps) * len(guidances) + (len(config.steps) if student else 0)
    progress.start("evaluate", num_draws * len(prompts), "pictures")
    painter = Painter(requests, config.batch_size, workspace.root / "cache" / "teacher-pictures", progress)
    teachers, sweep = _draw_teacher(config, painter, teacher, sampler, guidances, tests)
    teacher.unload()
    students = _draw_student(config, painter, student, tests)
    progress.finish()

    reference, floor = _reference(config, tests, teachers)
    rows = _table(config, tests, [*teachers, *students], reference)
    facts = {
        "teacher": config.teacher or teacher.name,
        "sampler": config.sampler,
        "num_images": len(tests.prompts),
        "size": shown_size(resolution),
        "reference": "rendered held-out scenes" if tests.scenes else f"the teacher's {_longest(teachers).steps} steps",
        "frechet_floor": floor,
        "feature_space": VERSION,
        "guidance_sweep": sweep,
        "config": to_dict(config),
        "versions": versions(),
    }
    result = EvaluationResult(rows=rows, facts=facts, student=folder)
    name = folder.resolve().name if folder else teacher.name
    return write_report(
        config.out or workspace.report_path(name), name, result, tests, [*teachers, *students], config.page_prompts
    )


def _say_size(record: Mapping[str, Any], asked: Size | None, size: Size, progress: Progress) -> None:
    """Log a size that is new to the student, and which of the sizes of a training in buckets is scored."""
    if (warning := unseen(record, asked)) is not None:
        progress.log(warning)
    elif len(trained_sizes(record)) > 1:
        progress.log(f"scored at {shown_size(size)}; the student was trained at {shown_sizes(record)}")


def open_both(config: EvaluateConfig, workspace: Workspace, progress: Progress) -> tuple[Path | None, Teacher]:
    """Return the student's folder (None when only a teacher is there to be scored) and its teacher."""
    from ddx.sampling.run import choose_student
    from ddx.sampling.student import StudentFolder
    from ddx.teachers.registry import load_teacher, teacher_key

    folder: Path | None = None
    if config.student is not None or config.teacher is None:
        folder = choose_student(config.student, workspace)
    else:
        wanted = teacher_key(config.teacher)
        folder = workspace.newest_student(lambda found: teacher_key(found.record.get("teacher", "")) == wanted)
    if config.student is None:
        progress.log(f"student: {folder} (the newest)" if folder else "no student of this teacher: scoring it alone")
    files = StudentFolder(folder) if folder else None
    if files is not None and files.remark:
        progress.log(files.remark)
    record = files.record if files else {}
    name = config.teacher or record.get("teacher")
    if not name:
        raise DdxError(f"{folder} does not say which teacher it had", hint="name it with --teacher")
    return folder, load_teacher(
        name, device=find_device(config.device), dtype=None if config.dtype == "auto" else config.dtype
    )


def make_test_set(config: EvaluateConfig, teacher: Teacher, resolution: Size) -> TestSet:
    """Return what is drawn: the prompts of a file, held-out scenes for a teacher of scenes, or its standard prompts.

    A file or a standard set with fewer prompts than `num_images` is gone through again with other seeds.
    """
    if config.prompts is not None:
        base: Sequence[str] = read_prompts(config.prompts)
    elif are_scenes(teacher.validation_prompts, resolution):
        from ddx.scenes.captions import sample_captions

        base = sample_captions(config.num_images, seed=config.seed + 1, split="held-out")
    else:
        base = teacher.validation_prompts
    prompts = tuple(base[i % len(base)] for i in range(config.num_images))
    first = config.seed * 1_000_000
    chosen = list(dict.fromkeys(prompts))[: config.diversity_captions]
    return TestSet(
        prompts=prompts,
        seeds=tuple(range(first, first + len(prompts))),
        diversity_prompts=tuple(prompt for prompt in chosen for _ in range(config.diversity_seeds)),
        diversity_seeds=tuple(DIVERSITY_SEED + first + i for _ in chosen for i in range(config.diversity_seeds)),
        scenes=are_scenes(prompts, resolution),
    )


def _draw_teacher(
    config: EvaluateConfig,
    painter: Painter,
    teacher: Teacher,
    sampler: TeacherSampler,
    guidances: Sequence[float],
    tests: TestSet,
) -> tuple[list[ModelResult], list[dict[str, Any]]]:
    """Return the teacher at each step count at its best guidance, and what every guidance reached."""
    found: list[list[ModelResult]] = []
    for steps in config.teacher_steps:
        candidates = []
        for guidance in guidances:
            drawn = painter.teacher(teacher, steps, guidance, sampler)
            candidates.append(_result("teacher", steps, guidance, drawn, tests))
        found.append(candidates)
    reference, _ = _reference(config, tests, [candidate for candidates in found for candidate in candidates])
    best, sweep = [], []
    for candidates in found:
        distances = [frechet_distance(reference, _main(one, tests)) for one in candidates]
        # The checker decides where it can; the distance between equals, and where there is no checker.
        order = [(-(one.marks.get("overall") or 0.0), far) for one, far in zip(candidates, distances, strict=True)]
        best.append(candidates[min(range(len(order)), key=order.__getitem__)])
        for one, far in zip(candidates, distances, strict=True):
            sweep.append(
                {"steps": one.steps, "guidance": one.guidance, "overall": one.marks.get("overall"), "frechet": far}
            )
    return best, sweep


def _draw_student(
    config: EvaluateConfig, painter: Painter, student: StudentPipeline | None, tests: TestSet
) -> list[ModelResult]:
    if student is None:
        return []
    return [_result("student", n, student.guidance, painter.student(student, n), tests) for n in config.steps]


def _result(model: str, steps: int, guidance: float | None, drawn: Drawn, tests: TestSet) -> ModelResult:
    count = len(tests.prompts)
    marks = scene_scores(drawn.images[:count], tests.prompts) if tests.scenes else {}
    return ModelResult(
        model=model, steps=steps, guidance=guidance, drawn=drawn, features=extract(drawn.images), marks=marks
    )


def _table(
    config: EvaluateConfig, tests: TestSet, results: Sequence[ModelResult], reference: NDArray[np.float64]
) -> list[dict[str, Any]]:
    count = len(tests.prompts)
    against = Against(
        features=reference,
        variance=prompt_variance(_longest(results).features[count:], config.diversity_seeds),
        num_seeds=config.diversity_seeds,
        neighbours=config.neighbours,
    )
    rows = []
    for one in results:
        measured = Measured(
            marks=one.marks,
            features=_main(one, tests),
            repeated=one.features[count:],
            seconds_per_image=one.drawn.seconds_per_image,
            against=against,
        )
        scores = {metric.name: metric.measure(measured) for metric in METRICS}
        rows.append({"model": one.model, "steps": one.steps, "guidance": one.guidance, **scores})
    return rows


def _reference(
    config: EvaluateConfig, tests: TestSet, teachers: Sequence[ModelResult]
) -> tuple[NDArray[np.float64], float | None]:
    """Return the features that all are compared with, and the distance that pictures of the same kind have to them.

    Scenes are rendered: several for each caption, and one set more that gives the floor. Other prompts have no pictures
    of their own, so the teacher's at its most steps stand for them.
    """
    if not tests.scenes:
        return _main(_longest(teachers), tests), None
    from ddx.scenes.captions import parse_caption
    from ddx.scenes.render import render

    specs = [parse_caption(prompt) for prompt in tests.prompts]
    sets = [extract(render(specs, seed=config.seed * 100 + i)) for i in range(REFERENCES_PER_PROMPT + 1)]
    reference = np.concatenate(sets[1:])
    return reference, frechet_distance(reference, sets[0])


def _longest(results: Sequence[ModelResult]) -> ModelResult:
    return max((one for one in results if one.model == "teacher"), key=lambda one: one.steps)


def _main(one: ModelResult, tests: TestSet) -> NDArray[np.float64]:
    return one.features[: len(tests.prompts)]
