"""The weights that networks start with in place of their teacher's: a student's are those of another student.

It is one of ddx's, of the same teacher, or one that others published, of a pipeline that the family knows.

So a method goes on where another one has come to: score distillation from a consistency student, say, or two steps from
one. A fake score may go on too, from the last checkpoint of the run that made the student. Whatever else is a copy of
the teacher starts from the teacher as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ddx.checkpoints.folder import latest_checkpoint, load_checkpoint, or_damaged
from ddx.checkpoints.shares import Spread, whole
from ddx.errors import UsageError
from ddx.methods.base import FAKE, Method
from ddx.networks.guidance import EMBEDDERS
from ddx.sampling.run import choose_student
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.teachers.families.table import STUDENT_PIPELINES
from ddx.teachers.hub import Source, hub_source, local_source, read_json
from ddx.teachers.registry import is_hub_id
from ddx.teachers.stored_weights import start_later_from, weights_later
from ddx.training.run_folder import CHECKPOINTS
from ddx.workspace import Workspace

Start = Mapping[str, Tensor | Spread]
"""The weights of one network, by name."""

_OF_PICTURES = ("resolution", "latent_shape")  # may differ: one student draws several sizes


def starting_weights(
    student: Path | None,
    teacher: Teacher,
    workspace: Workspace,
    guidance: Sequence[float] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Tensor] | None:
    """Return the weights of an exported student, None for None; `say` hears of a guidance outside the run's range.

    Raises UsageError where there is none, and where it is not a student of this teacher: by its record, by what its
    network predicts, or by the shapes of its weights.
    """
    if student is None:
        return None
    published = published_student(student, workspace)
    if published is not None:
        return _published_weights(published, teacher, guidance, say)
    files = StudentFolder(choose_student(student, workspace))
    _require_same_teacher(files, teacher, say)
    if guidance is not None and files.guidance is not None and not guidance[0] <= files.guidance <= guidance[1]:
        wanted = " to ".join(f"{scale:g}" for scale in sorted(set(guidance)))
        say(
            f"{files.folder} holds guidance {files.guidance:g}, and this run is for {wanted}: it begins with the former"
        )
    weights = files.weights()
    _require_same_shapes(weights, teacher, str(files.folder), files.record.get("teacher", "NAME"))
    return weights


def fake_of_last_stage(student: Path | None, method: Method, workspace: Workspace) -> Start:
    """Return the weights of the fake score at the end of the run that made `student`, read as they are used.

    Raises UsageError where the method has no fake score, and where that run kept none that fits.
    """
    setting = "fake_from = last-stage"
    leave = "leave --fake-from away: the fake score begins with the teacher's weights"
    if FAKE not in {spec.name for spec in method.networks()}:
        raise UsageError(f"{setting}: this method has no fake score", hint="leave --fake-from away")
    if student is None:
        raise UsageError(f"{setting} needs a student to start from", hint=f"add --from-student STUDENT, or {leave}")
    folder = choose_student(student, workspace)
    around = (folder, folder.parent, folder.parent.parent)  # best/ and averages/<name> are students too
    checkpoint = next(filter(None, (latest_checkpoint(run / CHECKPOINTS) for run in around)), None)
    if checkpoint is None:
        raise UsageError(f"{setting}: there is no checkpoint in {folder / CHECKPOINTS}", hint=leave)
    with or_damaged(checkpoint):
        found = load_checkpoint(checkpoint).tensors.get(FAKE)
    if found is None:
        raise UsageError(f"{setting}: the run that made {folder} had no fake score", hint=leave)
    own = {name: value for name, value in found.items() if not name.startswith(EMBEDDERS)}
    _require_same_shapes(own, method.teacher, f"the fake score of {checkpoint}", "NAME")
    return found


def published_student(student: Path, workspace: Workspace) -> Source | None:
    """Return the pipeline of a student that others published, in a folder or on the hub; None of any other student."""
    folder = choose_student(student, workspace)
    if folder.is_dir():
        index = folder / "model_index.json"
        known = index.is_file() and read_json(index).get("_class_name") in STUDENT_PIPELINES
        return local_source(folder) if known else None
    if not is_hub_id(str(student)) or student.parent.is_dir():
        return None
    source = hub_source(str(student), "main", students=True)
    if source.pipeline not in STUDENT_PIPELINES:
        raise UsageError(
            f"{student} is a {source.pipeline}, not a published student that ddx knows",
            hint=f"it starts from a {' or a '.join(STUDENT_PIPELINES)}, or from what `ddx list students` shows",
        )
    return source


def _published_weights(
    source: Source, teacher: Teacher, guidance: Sequence[float] | None, say: Callable[[str], None]
) -> dict[str, Tensor]:
    family = STUDENT_PIPELINES[source.pipeline]
    if family.name != teacher.family:
        raise UsageError(
            f"{source.name} is a student of the family {family.title}; {teacher.name} is of another",
            hint="give a teacher of its family: see `ddx list teachers`",
        )
    low, high = (teacher.default_guidance,) * 2 if guidance is None else (min(guidance), max(guidance))
    scale = min(max(teacher.default_guidance, low), high)
    weights = teacher.published_weights(source, scale)
    _require_same_shapes(weights, teacher, source.name, "NAME")
    say(f"starts from {source.origin}, at guidance {scale:g}")
    return weights


def _require_same_shapes(weights: Start, teacher: Teacher, student: str, other: str) -> None:
    with weights_later():
        shapes = {name: value.shape for name, value in teacher.new_student_network().state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise UsageError(
            f"the weights of {student} do not fit the teacher: it is a student of another one",
            hint=f"give the teacher that it was distilled from: --teacher {other}",
        )


def _require_same_teacher(files: StudentFolder, teacher: Teacher, say: Callable[[str], None]) -> None:
    if not files.record:
        raise UsageError(
            f"{files.folder} is not a student: it has no run.json", hint="give the folder that `ddx distill` wrote"
        )
    hint = f"give the teacher that it was distilled from: --teacher {files.record.get('teacher', 'NAME')}"
    if files.prediction not in (None, teacher.prediction):
        raise UsageError(
            f"{files.folder} is a student of another teacher: it predicts {files.prediction}, {teacher.name} predicts "
            f"{teacher.prediction}",
            hint=hint,
        )
    then, now = files.record.get("teacher_fingerprint") or {}, teacher.fingerprint()
    for key in (key for key in now if key not in _OF_PICTURES):
        if key in then and then[key] != now[key]:
            raise UsageError(
                f"{files.folder} is a student of another teacher: its {key} was {then[key]}, that of {teacher.name} is "
                f"{now[key]}",
                hint=hint,
            )
    before = files.record.get("teacher_source")
    if before not in (None, teacher.source):
        say(f"{files.folder} was distilled from {before}, the teacher now is {teacher.source}")


def start_from(network: nn.Module, weights: Start) -> None:
    """Give `network` these weights; embedders that a method has added to it, and not to those, stay as they are.

    Weights of embedders that this network does not have are left out.
    """
    own = network.state_dict()
    taken = {name: value for name, value in weights.items() if name in own or not name.startswith(EMBEDDERS)}
    rest = {name: whole(value) for name, value in start_later_from(network, taken).items()}
    odd = network.load_state_dict(rest, strict=False)
    missing = [name for name in odd.missing_keys if name not in weights and not name.startswith(EMBEDDERS)]
    left = [*odd.unexpected_keys, *missing]
    assert not left, left
