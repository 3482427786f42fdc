"""What `ddx prepare` does: a distillation whose student is a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from ddx.config import field_types
from ddx.methods.parts.preparation_config import PreparationConfig
from ddx.progress import Progress
from ddx.training.config import DistillConfig
from ddx.training.distill import distill, plan
from ddx.training.prepare_config import PrepareConfig
from ddx.workspace import Workspace

NUM_STEPS = 20  # of the pictures in a grid, beside the teacher's as it was


def prepare(
    config: PrepareConfig,
    *,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
    said: Collection[str] = (),
) -> Path:
    """Prepare a teacher and return its folder, which is a --teacher; the same call goes on with an unfinished one.

    `said`, and what is raised, as of :func:`ddx.training.distill.distill`.
    """
    workspace = workspace or Workspace()
    return distill(*as_distillation(config, workspace), workspace=workspace, progress=progress, said=said)


def plan_preparation(config: PrepareConfig, *, workspace: Workspace | None = None) -> tuple[Path, Path, float]:
    """Return the folder, the store and the seconds that `prepare` would have, without writing anything."""
    workspace = workspace or Workspace()
    found = plan(*as_distillation(config, workspace), workspace=workspace)
    return found.folder.path, found.store, found.seconds


def as_distillation(config: PrepareConfig, workspace: Workspace) -> tuple[DistillConfig, PreparationConfig]:
    """Return the preparation as the distillation that it is."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own = {name: values.pop(name) for name in ("qk_norm", "dense_time", "null_share")}
    values["out"] = config.out or workspace.teacher_path(config.teacher, "prepared")
    assert values.keys() <= field_types(DistillConfig).keys()
    run = DistillConfig(method="preparation", sample_steps=(NUM_STEPS,), **values)
    return run, PreparationConfig(**own)
