"""The variances of Analytic-DPM on a store's latents: measured once a time, and kept in a file beside the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddx.data.loader import Loader
from ddx.data.store import Store
from ddx.errors import UsageError
from ddx.progress import NullProgress, Progress
from ddx.run_record import write_json
from ddx.teachers.condition import Condition
from ddx.teachers.samplers.analytic import Known
from ddx.teachers.samplers.measuring import measure_variances, time_key

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

NUM_ROWS = 1024
VERSION = 1  # of how they are measured


class StoreVariances:
    """Variances of a teacher's network on a store's latents. Nothing is read before a time is asked for.

    They are of the network with the caption and without guidance: of what the data leave open.
    """

    def __init__(
        self,
        store: Store,
        teacher: Teacher,
        *,
        num_rows: int = NUM_ROWS,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> None:
        """batch_size: rows a pass; commands leave it, so that they share the file.

        Raises UsageError for a store of another teacher, DdxError for an unfinished one.
        """
        wanted = teacher.fingerprint(store.resolution)
        if store.fingerprint != wanted:
            key = next(key for key in wanted if store.fingerprint.get(key) != wanted[key])
            raise UsageError(
                f"{store.path} does not fit {teacher.name}: its {key} is {store.fingerprint.get(key)}, "
                f"the teacher's is {wanted[key]}",
                hint="give a store of this teacher with --data",
            )
        store.require_complete()
        self.store, self.teacher, self.num_rows, self.batch_size = store, teacher, num_rows, batch_size
        self.progress = progress or NullProgress()

    @property
    def path(self) -> Path:
        """The file beside the store."""
        return self.store.path.with_suffix(".analytic-dpm.json")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the values: the store, the teacher's network, and how they are measured."""
        contents = json.dumps([self.store.attributes, self.store.num_ok], sort_keys=True, default=str)
        return {
            "version": VERSION,
            "store": hashlib.sha256(contents.encode()).hexdigest(),
            "teacher": self.teacher.network_identity(),
            "dtype": str(self.teacher.dtype),
            "num_rows": self.num_rows,
            "batch_size": self.batch_size,
        }

    def fingerprint(self) -> str:
        """See :meth:`Variances.fingerprint`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:24]

    def at(self, teacher: Teacher, times: Sequence[float]) -> Known:
        """See :meth:`Variances.at`. Measures the times that the file does not have, and keeps them there."""
        kept = self._kept()
        missing = [t for t in times if time_key(t) not in kept["times"]]
        if missing:
            measured = self._measure(missing)
            kept = {**measured, "times": {**kept["times"], **measured["times"]}}
            try:
                write_json(self.path, {**self.identity, **kept})
            except OSError as error:
                self.progress.log(f"the variances are not kept: cannot write {self.path}: {error.strerror}")
        errors = tuple(float(kept["times"][time_key(t)]["error"]) for t in times)
        return Known(errors=errors, variance=float(kept["variance"]), half_range=float(kept["half_range"]))

    def _kept(self) -> dict[str, Any]:
        """Return what the file holds of this store and teacher; nothing of a file that is broken or of others."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if all(found.get(key) == value for key, value in self.identity.items()):
                for one in found["times"].values():
                    float(one["error"])
                return {name: found[name] for name in ("times", "variance", "half_range")}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        return {"times": {}}

    def _measure(self, times: Sequence[float]) -> dict[str, Any]:
        device = next(self.teacher.network().parameters()).device
        num_ok = self.store.num_ok
        size = min(self.batch_size, num_ok)
        num_batches = min(self.num_rows, num_ok) // size
        self.progress.start("measure variances", num_batches * len(times), "passes")
        loader = Loader(self.store, size, seed=0)

        def batches() -> Iterator[tuple[Tensor, Condition]]:
            for batch in islice(loader, num_batches):
                latents = self.teacher.scale(batch.latents.to(device, torch.float32))
                yield latents, batch.condition.to(device, torch.float32)

        try:
            null = self.store.null_condition().to(device, torch.float32)
            measured = measure_variances(self.teacher, batches(), null, times, self.progress)
        finally:
            loader.close()
        self.progress.finish()
        return measured
