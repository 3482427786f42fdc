"""The files that make a student, without what its training left: checkpoints, averages, measurements."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ddx.errors import cannot_write
from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE
from ddx.run_record import FILE_NAME
from ddx.sampling.card import CARD_NAME, SCORES_NAME
from ddx.sampling.student import StudentFolder
from ddx.teachers.hub import TEXT_SUFFIXES

INDEX = "model_index.json"
_BESIDE = (CARD_NAME, FILE_NAME, SCORES_NAME, DIFFUSERS_FILE, COMFYUI_FILE, INDEX)  # the index last: then it is whole
_OF_PARTS = (*TEXT_SUFFIXES, ".safetensors")


def student_files(student: StudentFolder) -> Iterator[Path]:
    """Yield the files of a student's pipeline, and of those inside for other numbers of steps, by relative paths."""
    inside = [name for name in student.record.get("step_folders", {}).values() if name != "."]
    for folder in (*map(Path, inside), Path(".")):
        parts = [name for name, entry in student.index.items() if isinstance(entry, list) and entry[1] is not None]
        for part in parts:
            for file in sorted((student.folder / folder / part).glob("*")):
                if file.is_file() and file.suffix in _OF_PARTS:
                    yield folder / part / file.name
        yield from (folder / name for name in _BESIDE if (student.folder / folder / name).is_file())


def copy_student(student: StudentFolder, out: Path) -> None:
    """Copy the student into `out`, a folder that is made. Raises DdxError when the disk refuses."""
    for name in student_files(student):
        target = out / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(student.folder / name, target)
        except OSError as error:
            raise cannot_write(target, error) from error
