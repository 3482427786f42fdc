"""Pictures that are drawn to be scored, as PNG files in the workspace: what is there already is not drawn again.

runs/cache/drawn/<key>/000000.png … drawing.json     the key: weights, prompts, seeds, steps, guidance, size, dtype
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import DdxError, cannot_write
from ddx.progress import Progress
from ddx.run_record import write_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddx.sampling.pipeline import StudentPipeline
    from ddx.teachers.size import Size

RECORD = "drawing.json"


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What is drawn: prompts with their seeds, at a size (None: the model's own)."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    size: Size | None
    steps: int


@dataclass(frozen=True, kw_only=True)
class DrawnFolder:
    """The files, one a request whether it could be drawn or not, and seconds per picture, where any was drawn."""

    folder: Path
    paths: tuple[Path, ...]
    seconds_per_image: float | None
    facts: dict[str, Any]


def draw_into(
    root: Path, pipeline: StudentPipeline, requests: Requests, batch_size: int, progress: Progress, **facts: Any
) -> DrawnFolder:
    """Draw what is missing in the folder of these requests below `root`, and return it.

    A picture that is not finite leaves no file, and is counted where pictures are read. facts: more of what shapes
    the pictures.
    """
    from ddx.sampling.pipeline import OutOfMemory

    known = {**_facts(pipeline, requests, batch_size), **facts}
    folder = root / hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:24]
    paths = tuple(folder / f"{number:06d}.png" for number in range(len(requests.prompts)))
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    progress.advance(len(paths) - len(missing))
    seconds = _seconds(folder)
    for start in range(0, len(missing), batch_size):
        numbers = missing[start : start + batch_size]
        began = time.perf_counter()
        try:
            pictures: list[Image | None] = list(_draw(pipeline, requests, numbers, together=batch_size > 1))
        except OutOfMemory:
            raise
        except DdxError:  # of a batch one is not finite: the others are
            pictures = [_alone(pipeline, requests, number, progress) for number in numbers]
        seconds.append((time.perf_counter() - began) / len(numbers))
        for number, picture in zip(numbers, pictures, strict=True):
            if picture is not None:
                _save(picture, paths[number])
        write_json(folder / RECORD, {**known, "seconds": seconds})
        progress.advance(len(numbers))
    return DrawnFolder(
        folder=folder,
        paths=paths,
        seconds_per_image=statistics.median(seconds) if seconds else None,
        facts={name: value for name, value in known.items() if name not in ("prompts", "seeds")},
    )


def _draw(pipeline: StudentPipeline, requests: Requests, numbers: Sequence[int], *, together: bool) -> list[Image]:
    prompts, seeds = ([values[number] for number in numbers] for values in (requests.prompts, requests.seeds))
    return pipeline.draw(prompts, seeds, requests.steps, resolution=requests.size, together=together)  # type: ignore[arg-type]


def _alone(pipeline: StudentPipeline, requests: Requests, number: int, progress: Progress) -> Image | None:
    try:
        return _draw(pipeline, requests, [number], together=False)[0]
    except DdxError as error:
        progress.log(f"picture {number} is left out: {error.message}")
        return None


def _save(picture: Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, "PNG", compress_level=1)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _facts(pipeline: StudentPipeline, requests: Requests, batch_size: int) -> dict[str, Any]:
    import torch

    return {
        "weights": _weights(pipeline),
        "prompts": requests.prompts,
        "seeds": requests.seeds,
        "steps": requests.steps,
        "guidance": pipeline.guidance,
        "size": requests.size or pipeline.files.resolution,
        "dtype": str(pipeline.pipeline.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        "batch_size": batch_size,
        "torch": torch.__version__,
    }


def _weights(pipeline: StudentPipeline) -> Any:
    """Return what tells the weights from others: a commit, or the names, sizes and times of the folder's files."""
    known = pipeline.files.record.get("teacher_fingerprint", {}).get("weights")
    if pipeline.files.record.get("kind") == "teacher" and known:
        return known
    folder = pipeline.files.folder
    files = sorted(path for end in ("model_index.json", "*/*.json", "*/*.safetensors") for path in folder.glob(end))
    facts = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return [str(folder.resolve()), [(name, fact.st_size, fact.st_mtime_ns) for name, fact in facts]]


def _seconds(folder: Path) -> list[float]:
    try:
        return [float(value) for value in json.loads((folder / RECORD).read_text(encoding="utf-8"))["seconds"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
