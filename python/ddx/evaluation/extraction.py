"""Features of pictures by all networks at once: threads read and resize, the networks compute in batches."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddx.errors import DdxError
from ddx.evaluation.picture_files import Picture, Pictures, square
from ddx.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from ddx.networks.picture_networks import PictureNetwork

Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """Features float32 `[N, D]` by `network.output`; kept: the numbers of the pictures that could be read.

    skipped: how many could not, by reason.
    """

    features: Mapping[str, Features]
    kept: NDArray[np.int64]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kept)


def extract(
    networks: Mapping[str, PictureNetwork],
    pictures: Pictures,
    *,
    side: int | None,
    batch_size: int,
    progress: Progress,
    cache: Path | None = None,
) -> Extracted:
    """Return the features of the pictures that can be read.

    side: what they are cropped and resized to first. cache: a folder that keeps the features of files, which are found
    again while names, sizes, times and networks stay what they are. DdxError where no picture can be read.
    """
    path = cache / f"{_key(networks, pictures, side)}.npz" if cache and pictures.files else None
    kept = _load(path)
    if kept is not None:
        return kept
    found: dict[str, list[Features]] = {}
    numbers: list[int] = []
    progress.start("features", pictures.count, "pictures")

    def prepare(loader: Callable[[], Picture]) -> dict[str, Tensor] | str:
        try:
            picture = square(loader(), side)
            return {name: network.prepare(picture) for name, network in networks.items()}
        except DdxError as error:
            return error.message
        except (ValueError, OSError, MemoryError) as error:  # a picture of no pixels, or of too many
            return type(error).__name__

    with ThreadPoolExecutor(_threads()) as pool:
        for start, batch in _ahead(pool, prepare, pictures.loaders(), batch_size):
            good = [(start + place, item) for place, item in enumerate(batch) if not isinstance(item, str)]
            pictures.skipped.update(item for item in batch if isinstance(item, str))
            numbers += [number for number, _ in good]
            for name, features in _compute(networks, [item for _, item in good]).items():
                found.setdefault(name, []).append(features)
            progress.advance(len(batch))
    progress.finish()
    if not numbers:
        reasons = ", ".join(f"{count} {reason}" for reason, count in pictures.skipped.items())
        raise DdxError(f"no picture of {pictures.name} can be read: {reasons}", hint="check the files")
    extracted = Extracted(
        features={name: np.concatenate(parts) for name, parts in found.items()},
        kept=np.array(numbers, np.int64),
        skipped=dict(pictures.skipped),
    )
    _save(path, extracted)
    return extracted


def _ahead(
    pool: ThreadPoolExecutor,
    prepare: Callable[[Callable[[], Picture]], dict[str, Tensor] | str],
    loaders: Iterator[Callable[[], Picture]],
    batch_size: int,
) -> Iterator[tuple[int, list[dict[str, Tensor] | str]]]:
    """Yield batches with the number of their first picture; the next one is read while a batch is computed."""
    waiting: list[Future[dict[str, Tensor] | str]] = []
    start = 0
    while True:
        coming = [pool.submit(prepare, loader) for loader in islice(loaders, batch_size)]
        if waiting:
            yield start, [future.result() for future in waiting]
            start += len(waiting)
        if not coming:
            return
        waiting = coming


def _compute(networks: Mapping[str, PictureNetwork], prepared: list[dict[str, Tensor]]) -> dict[str, Features]:
    import torch

    if not prepared:
        return {}
    found: dict[str, Features] = {}
    for name, network in networks.items():
        outputs = network(torch.stack([inputs[name] for inputs in prepared]))
        found |= {f"{name}.{output}": value.numpy() for output, value in outputs.items()}
    return found


def _threads() -> int:
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


def _key(networks: Mapping[str, PictureNetwork], pictures: Pictures, side: int | None) -> str:
    files = []
    for path in pictures.files:
        try:
            facts = path.stat()
            files.append([str(path.absolute()), facts.st_size, facts.st_mtime_ns])
        except OSError:
            files.append([str(path.absolute())])
    known = {"files": files, "side": side, "networks": {name: network.facts for name, network in networks.items()}}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:24]


def _load(path: Path | None) -> Extracted | None:
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            features: dict[str, Any] = {name: file[name] for name in file.files if name not in ("kept", "skipped")}
            return Extracted(features=features, kept=file["kept"], skipped=json.loads(str(file["skipped"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(path: Path | None, extracted: Extracted) -> None:
    """Write by temporary file and rename. A cache that cannot be written is no reason to lose the features."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            named: dict[str, Any] = dict(extracted.features)
            np.savez(file, kept=extracted.kept, skipped=json.dumps(dict(extracted.skipped)), **named)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
