"""The weights that a student starts with in place of its teacher's: those of another student of the same teacher.

So a method goes on where another one has come to: score distillation from a consistency student, say, or two steps from
one. Fake scores, and whatever else is a copy of the teacher, start from the teacher as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.networks.guidance import EMBEDDERS
from ddx.sampling.run import choose_student
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.workspace import Workspace


def starting_weights(student: Path | None, teacher: Teacher, workspace: Workspace) -> dict[str, Tensor] | None:
    """Return the weights of an exported student, None for None.

    Raises UsageError where there is none, and where it is not a student of a teacher of this shape.
    """
    if student is None:
        return None
    files = StudentFolder(choose_student(student, workspace))
    weights = files.weights()
    shapes = {name: value.shape for name, value in teacher.network().state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise UsageError(
            f"the weights of {files.folder} do not fit the teacher: it is a student of another one",
            hint=f"give the teacher that it was distilled from: --teacher {files.record.get('teacher', 'NAME')}",
        )
    return weights


def start_from(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give `network` these weights; embedders that a method has added to it stay as they are."""
    odd = network.load_state_dict(dict(weights), strict=False)
    left = [*odd.unexpected_keys, *(name for name in odd.missing_keys if not name.startswith(EMBEDDERS))]
    assert not left, left
