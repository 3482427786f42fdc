"""What drawn pictures are compared with: features of real ones, or statistics that were saved earlier.

FILE.npz    mu `[2048]` and sigma `[2048, 2048]`, float64, of Inception, as pytorch-fid writes and reads them;
            beside them, of files of ours: the features by network, the count, and the networks' weights as JSON
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddx.errors import DdxError, UsageError, cannot_write
from ddx.metrics.frechet import Gaussian, fit

INCEPTION = "inception.features"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Features `[N, D]` by `network.output`; `statistics` alone where a file has no features."""

    name: str
    features: Mapping[str, NDArray[np.float32]]
    statistics: Gaussian | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    _fitted: dict[str, Gaussian] = field(default_factory=dict, repr=False)

    @cached_property
    def count(self) -> int | None:
        """How many pictures it is of; None where its file does not say."""
        if self.features:
            return len(next(iter(self.features.values())))
        return self.statistics.count if self.statistics else None

    def gaussian(self, output: str) -> Gaussian:
        """Return the Gaussian of the features of `network.output`."""
        if output == INCEPTION and self.statistics is not None:
            return self.statistics
        if output not in self._fitted:
            self._fitted[output] = fit(self.rows(output, "its Fréchet distance"))
        return self._fitted[output]

    def rows(self, output: str, metric: str) -> NDArray[np.float32]:
        """Return the features of `network.output`; UsageError, which names the metric, where it has none."""
        if output not in self.features:
            raise UsageError(
                f"{self.name} has no features of {output.split('.')[0]}, which {metric} needs",
                hint="give --reference the pictures, or statistics that --save-statistics wrote for this metric",
            )
        return self.features[output]


def load_statistics(path: Path) -> Reference:
    """Return what a file holds. DdxError for one that is not of this kind."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DdxError(
            f"cannot read the statistics {path}: {error}", hint="make them with --save-statistics"
        ) from error
    features = {name.removeprefix("features."): value for name, value in found.items() if name.startswith("features.")}
    mean, covariance = found.get("mu"), found.get("sigma")
    if mean is None and not features:
        raise DdxError(f"{path} holds no mu and sigma, but {', '.join(found) or 'nothing'}", hint=_KIND)
    statistics = None
    if mean is not None:
        if covariance is None or mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise DdxError(f"mu and sigma of {path} do not fit each other", hint=_KIND)
        count = int(found["count"]) if "count" in found else None
        statistics = Gaussian(mean=mean.astype(np.float64), covariance=covariance.astype(np.float64), count=count)
    facts = json.loads(str(found["facts"])) if "facts" in found else {}
    return Reference(name=str(path), features=features, statistics=statistics, facts=facts)


def save_statistics(path: Path, reference: Reference, facts: Mapping[str, Any]) -> Path:
    """Write a reference so that `load_statistics` and pytorch-fid read it; return the path. Whole or not at all."""
    content: dict[str, Any] = {f"features.{name}": value for name, value in reference.features.items()}
    if INCEPTION in reference.features or reference.statistics is not None:
        gaussian = reference.gaussian(INCEPTION)
        content |= {"mu": gaussian.mean, "sigma": gaussian.covariance}
    if reference.count is not None:
        content["count"] = reference.count
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, facts=json.dumps(facts), **content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    return path


_KIND = "an .npz with mu and sigma, as pytorch-fid or --save-statistics writes it"
