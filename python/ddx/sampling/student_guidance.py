"""Another guidance scale for a student that was trained with a range of them.

The exported network has one scale folded into the last bias of its time embedding, maybe beside other numbers. The
checkpoints keep the embedder of the scale, so another fold adds the difference of two of its embeddings.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.errors import DdxError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ddx.sampling.student import StudentFolder


def check_guidance(student: StudentFolder, guidance: float, held: float) -> None:
    """Raise UsageError for a scale that the student, which is for `held`, was not trained at."""
    trained = student.record.get("guidance_range")
    shipped = f"{'it is for' if student.call.embedded_guidance else 'its weights hold'} guidance {held:g}"
    if not trained or trained[0] >= trained[1]:
        raise UsageError(
            f"{student.name} was distilled at one guidance scale: {shipped}",
            hint="leave --guidance away, or distil with --guidance-min and --guidance-max",
        )
    if not trained[0] <= guidance <= trained[1]:
        raise UsageError(
            f"guidance = {guidance:g} is outside {trained[0]:g} to {trained[1]:g}, the range of {student.name}",
            hint=f"--guidance {min(max(guidance, trained[0]), trained[1]):g}",
        )


def refold_guidance(student: StudentFolder, linear: nn.Linear | None, guidance: float, folded: float) -> None:
    """Fold `guidance` into a denoiser of the student that holds `folded`, in place; `linear` ends its time embedding.

    Raises DdxError where the student takes no guidance or its checkpoints are gone.
    """
    import torch

    stored = _stored_embedder(student.folder)
    if not stored or linear is None:
        raise DdxError(
            f"the checkpoints of {student.name} are not there to fold guidance {guidance:g} from; "
            f"its weights hold guidance {folded:g}",
            hint="leave --guidance away, or keep the student's checkpoints folder beside it",
        )
    assert linear is not None
    with torch.no_grad():
        linear.bias.add_((_embedding(stored, guidance) - _embedding(stored, folded)).to(linear.bias.device))


def _embedding(stored: dict[str, Tensor], guidance: float) -> Tensor:
    import torch

    from ddx.networks.guidance import guidance_embedder

    embedder = guidance_embedder(stored["last.bias"].shape[0])
    embedder.load_state_dict(stored)
    with torch.no_grad():
        embedding: Tensor = embedder(torch.tensor([guidance]))[0]
    return embedding


def _stored_embedder(folder: Path) -> dict[str, Tensor]:
    """Return the embedder's weights in the newest checkpoint, float32, of its average where one was exported.

    Empty without a checkpoint that has one.
    """
    from ddx.checkpoints.files import Damaged, read_tensors
    from ddx.checkpoints.folder import list_checkpoints
    from ddx.checkpoints.shares import whole
    from ddx.teachers.extra_input import GUIDANCE

    prefix = f"{GUIDANCE}."
    for checkpoint in reversed(list_checkpoints(folder / "checkpoints")):
        with suppress(Damaged):
            saved = read_tensors(checkpoint)
            for group in ("ema", "student"):
                named = saved.get(group, {})
                found = {key.removeprefix(prefix): whole(named[key]).float() for key in named if key.startswith(prefix)}
                if found:
                    return found
    return {}
