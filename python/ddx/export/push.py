"""`ddx push`: a finished student on the Hugging Face hub, with its card and pictures, in one commit."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.errors import DdxError, UsageError, first_line
from ddx.export.config import PushConfig
from ddx.export.files import student_files
from ddx.progress import NullProgress, Progress
from ddx.run_record import FILE_NAME, read_run
from ddx.sampling.card import CARD_NAME, CardPicture, card_text, read_scores
from ddx.sampling.run import choose_student
from ddx.sampling.student import StudentFolder
from ddx.workspace import Workspace

MAX_PICTURES = 12
GRID = "pictures/grid.png"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOGIN = "`hf auth login` with a token that may write, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What goes to the hub: local files by their path there, and the texts that are written for it."""

    student: Path
    repository: str
    files: dict[str, Path]
    texts: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        num_bytes = sum(path.stat().st_size for path in self.files.values())
        names = sorted([*self.files, *self.texts])
        return {"student": str(self.student), "repository": self.repository, "bytes": num_bytes, "files": names}


def prepare(student: Path, repository: str, config: PushConfig, workspace: Workspace) -> Upload:
    """Return what `push` would upload. UsageError for a name that is none, DdxError for an unfinished student."""
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UsageError(f"{repository!r} is no repository on the hub", hint="give ORG/NAME, such as me/my-student")
    files = StudentFolder(choose_student(student, workspace))
    if not files.record.get("finished"):
        what = "is not finished" if files.record else "has no run.json, which says what it was made from"
        raise DdxError(
            f"the student in {files.folder} {what}",
            hint="run the same `ddx distill` command again: it goes on where it stopped",
        )
    named = {name.as_posix(): files.folder / name for name in student_files(files)}
    pictures, drawn = _pictures(files, config, workspace)
    grid = _last_grid(files.folder)
    if grid is not None:
        named[GRID] = grid
    card = card_text(files, read_scores(files.folder), pictures, GRID if grid is not None else None)
    texts = {CARD_NAME: card, FILE_NAME: json.dumps(_without_paths(files.record), indent=2) + "\n"}
    kept = {name: path for name, path in {**named, **drawn}.items() if name not in texts}
    for name in [name for name in kept if name.endswith(f"/{FILE_NAME}")]:
        texts[name] = json.dumps(_without_paths(read_run(kept.pop(name).parent)), indent=2) + "\n"
    return Upload(student=files.folder, repository=repository, files=kept, texts=texts)


def _pictures(
    files: StudentFolder, config: PushConfig, workspace: Workspace
) -> tuple[list[CardPicture], dict[str, Path]]:
    """The pictures of `ddx sample` for the card, and their files by their path in the repository."""
    folder = config.samples or workspace.sample_path(files.folder.resolve())
    record = read_run(folder)
    if record is None and config.samples is not None:
        raise UsageError(f"{folder} holds no pictures of `ddx sample`", hint="see `ddx sample --out DIR`")
    shown, found = [], {}
    for image in ((record or {}).get("images") or [])[:MAX_PICTURES]:
        path = folder / Path(image["path"]).name
        if path.is_file():
            name = f"pictures/{path.name}"
            shown.append(CardPicture(path=name, prompt=str(image["prompt"])))
            found[name] = path
    return shown, found


def _last_grid(folder: Path) -> Path | None:
    grids = sorted((folder / "grids").glob("step-*.png"), key=lambda path: (len(path.name), path.name))
    return grids[-1] if grids else None


def _without_paths(value: Any) -> Any:
    """The value with absolute paths cut to their last part: where they lie here concerns nobody."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    return value


def push(upload: Upload, config: PushConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Upload it and return the repository's address and the commit. DdxError for what the hub does not take."""
    from huggingface_hub import HfApi, constants, get_token

    progress = progress or NullProgress()
    if constants.HF_HUB_OFFLINE:
        raise DdxError("HF_HUB_OFFLINE is set: nothing can be uploaded", hint="unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise DdxError("there is no token of the hub on this machine", hint=_LOGIN)
    hub = HfApi()
    progress.log(f"uploading {len(upload.files) + len(upload.texts)} files to {hub.endpoint}/{upload.repository} …")
    try:
        made = hub.create_repo(upload.repository, repo_type="model", private=config.private or None, exist_ok=True)
        with tempfile.TemporaryDirectory() as staged:
            _stage(upload, Path(staged))
            commit = hub.upload_folder(
                repo_id=upload.repository,
                folder_path=staged,
                repo_type="model",
                commit_message=f"Student {upload.student.resolve().name}",
            )
    except Exception as error:  # no route, a proxy, TLS: each transport raises its own
        raise _refused(upload.repository, error) from error
    return {**upload.to_dict(), "url": str(made), "commit": commit.oid}


def _stage(upload: Upload, folder: Path) -> None:
    """Lay the upload out in a folder: links to what is on the disk, and the texts."""
    for name, path in upload.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path.resolve())
    for name, text in upload.texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _refused(repository: str, error: Exception) -> DdxError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return DdxError("the hub does not know the token of this machine", hint=_LOGIN)
    if status == 403:
        return DdxError(
            f"the token of this machine may not write to {repository}",
            hint=f"use another ORG/NAME, or {_LOGIN}",
        )
    if status is None and isinstance(error, ValueError):  # the card's metadata
        return DdxError(f"the hub refuses {repository}: {error}", hint="`ddx push --dry-run` shows what is uploaded")
    return DdxError(
        f"{repository} could not be uploaded: {first_line(error)}",
        hint="check the network, then run the same command again",
    )


def summary(names: Sequence[str]) -> str:
    """The files in few words: folders with their number of files."""
    counts: dict[str, int] = {}
    for name in names:
        top = name.partition("/")[0] + ("/" if "/" in name else "")
        counts[top] = counts.get(top, 0) + 1
    return ", ".join(f"{top} ({count})" if top.endswith("/") else top for top, count in counts.items())
