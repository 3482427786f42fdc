"""`ddx push`: put a student on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from ddx.cli import suggestions
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options
from ddx.export.config import PushConfig


@click.command(
    epilog="""\b
Example:
  ddx push runs/students/sdxl-dmd2 me/sdxl-dmd2 --private --dry-run
"""
)
@click.argument("student", metavar="STUDENT", type=click.Path(path_type=Path), shell_complete=suggestions.students)
@click.argument("repository", metavar="ORG/NAME")
@config_options(PushConfig)
def command(invocation: Invocation, student: Path, repository: str) -> int:
    """Put a student on the Hugging Face hub.

    The repository is made if it is not there. Checkpoints are not uploaded. The card names the teacher as the base
    model, and shows the student's pictures of `ddx sample` and the last grid of its training.
    """
    from ddx.cli.console import emit, emit_json, emit_settings
    from ddx.export.push import prepare, push, summary

    config = invocation.build(PushConfig)
    upload = prepare(student, repository, config, invocation.workspace)
    if invocation.dry_run:
        planned = {**upload.to_dict(), "private": config.private}
        if not invocation.as_json:
            planned["files"] = summary(planned["files"])
        emit_settings(planned, as_json=invocation.as_json)
        return 0
    found = push(upload, config, invocation.progress)
    if invocation.as_json:
        emit_json(found)
    else:
        emit(found["url"])
    return 0
