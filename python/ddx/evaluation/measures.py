"""The metrics of pictures beside real ones: a row each, in the order of reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddx.errors import UsageError
from ddx.evaluation.extraction import Extracted
from ddx.evaluation.reference import INCEPTION, Reference
from ddx.metrics.bootstrap import Estimate, mean_estimate
from ddx.metrics.frechet import frechet_estimate, frechet_infinity
from ddx.metrics.inception_score import inception_score
from ddx.metrics.kernel_distance import cmmd, kid
from ddx.metrics.precision_recall import Manifolds, manifolds

if TYPE_CHECKING:
    from ddx.networks.picture_networks import ClipPictures, PictureNetwork

FEW = 10_000  # pictures under which a FID stands beside its extrapolation
LEAST_FOR_A_LINE = 20


@dataclass(kw_only=True)
class Compared:
    """Pictures that are scored: their features, their captions, and the real ones.

    lpips: the mean distance of pairs of seeds, one a prompt, where several were drawn.
    """

    drawn: Extracted
    reference: Reference | None
    captions: Sequence[str] | None
    networks: Mapping[str, PictureNetwork]
    resamples: int
    lpips: NDArray[np.float64] | None = None
    _manifolds: dict[int, Manifolds] = field(default_factory=dict)

    def real(self, metric: str) -> Reference:
        """Return the reference; UsageError, which names the metric, where there is none."""
        if self.reference is None:
            raise UsageError(f"{metric} compares with real pictures", hint="give --reference")
        return self.reference

    def manifolds(self, k: int) -> Manifolds:
        """Return the neighbourhoods; of the same number of pictures on both sides, of the larger one random ones."""
        if k not in self._manifolds:
            real, made = self.real("precision").rows(INCEPTION, "precision"), self.drawn.features[INCEPTION]
            count = min(len(real), len(made))
            self._manifolds[k] = manifolds(_some(real, count), _some(made, count), k)
        return self._manifolds[k]

    def cosines(self, network: str) -> NDArray[np.float64]:
        """Return the cosine of each picture with its own caption."""
        if self.captions is None:
            raise UsageError(f"{network} needs the pictures' captions", hint="give --prompts FILE, one a line")
        model: Any = self.networks[network]
        texts = [self.captions[number] for number in self.drawn.kept]
        words = model.scorer.text_features(texts, model.device).cpu().numpy()
        found: NDArray[np.float64] = (words * self.drawn.features[f"{network}.features"]).sum(1).astype(np.float64)
        return found

    @cached_property
    def clip_scores(self) -> NDArray[np.float64]:
        """100 times the cosine, or 0 where it is below (Hessel et al. 2021), one a picture."""
        return np.maximum(100.0 * self.cosines("clip"), 0.0)

    @cached_property
    def pick_scores(self) -> NDArray[np.float64]:
        """The cosine times the model's own scale (Kirstain et al. 2023), one a picture."""
        model: ClipPictures | Any = self.networks["pickscore"]
        return float(model.scorer.model.logit_scale.detach().exp()) * self.cosines("pickscore")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric: the networks that it needs, how it is written, and how it is measured.

    rows: the `network.output` whose features of the real pictures it needs, where statistics do not do.
    """

    title: str
    networks: tuple[str, ...]
    digits: str
    measure: Callable[[Compared], Estimate | None]
    rows: str | None = None
    values: Callable[[Compared], NDArray[np.float64]] | None = None  # one a picture, where it is a mean of them

    def text(self, value: float | None, error: float | None = None) -> str:
        """Return a value with its 95 % band as people read it; a dash for None."""
        if value is None:
            return "–"
        return format(value, self.digits) + (f" ± {1.96 * error:.2g}" if error else "")


def _infinity(seen: Compared) -> Estimate | None:
    made = seen.drawn.features[INCEPTION]
    if len(made) < LEAST_FOR_A_LINE:
        return None
    return Estimate(value=frechet_infinity(seen.real("FID∞").gaussian(INCEPTION), made))


def _frechet(output: str) -> Callable[[Compared], Estimate]:
    def measure(seen: Compared) -> Estimate:
        made = seen.drawn.features[output]
        return frechet_estimate(seen.real("a Fréchet distance").gaussian(output), made, seen.resamples)

    return measure


def _neighbours(name: str, k: int) -> Measure:
    return Measure(
        title=name,
        networks=("inception",),
        digits=".3f",
        rows=INCEPTION,
        measure=lambda seen: seen.manifolds(k).estimates(seen.resamples)[name],
    )


def _lpips(seen: Compared) -> Estimate | None:
    return None if seen.lpips is None else mean_estimate(seen.lpips, seen.resamples)


MEASURES: dict[str, Measure] = {
    "fid": Measure(title="FID", networks=("inception",), digits=".2f", measure=_frechet(INCEPTION)),
    "fid_infinity": Measure(title="FID∞", networks=("inception",), digits=".2f", measure=_infinity),
    "kid": Measure(
        title="KID",
        networks=("inception",),
        digits=".5f",
        rows=INCEPTION,
        measure=lambda seen: kid(seen.real("KID").rows(INCEPTION, "KID"), seen.drawn.features[INCEPTION]),
    ),
    "is": Measure(
        title="IS",
        networks=("inception",),
        digits=".2f",
        measure=lambda seen: inception_score(seen.drawn.features["inception.logits"]),
    ),
    **{name: _neighbours(name, k) for name, k in {"precision": 3, "recall": 3, "density": 5, "coverage": 5}.items()},
    "cmmd": Measure(
        title="CMMD",
        networks=("clip_large",),
        digits=".3f",
        rows="clip_large.features",
        measure=lambda seen: cmmd(
            seen.real("CMMD").rows("clip_large.features", "CMMD"),
            seen.drawn.features["clip_large.features"],
            seen.resamples,
        ),
    ),
    "fd_dinov2": Measure(
        title="FD-DINOv2",
        networks=("dinov2",),
        digits=".4g",
        rows="dinov2.features",
        measure=_frechet("dinov2.features"),
    ),
    "clipscore": Measure(
        title="CLIPScore",
        networks=("clip",),
        digits=".2f",
        measure=lambda seen: mean_estimate(seen.clip_scores, seen.resamples),
        values=lambda seen: seen.clip_scores,
    ),
    "pickscore": Measure(
        title="PickScore",
        networks=("pickscore",),
        digits=".2f",
        measure=lambda seen: mean_estimate(seen.pick_scores, seen.resamples),
        values=lambda seen: seen.pick_scores,
    ),
    "lpips": Measure(title="LPIPS of seeds", networks=(), digits=".3f", measure=_lpips),
}


def with_extrapolation(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the metrics with FID∞ behind FID where the pictures are too few for FID alone."""
    if "fid" in names and "fid_infinity" not in names and count < FEW:
        place = list(names).index("fid") + 1
        return (*names[:place], "fid_infinity", *names[place:])
    return tuple(names)


def networks_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the networks that metrics need, each once."""
    return tuple(dict.fromkeys(network for name in names for network in MEASURES[name].networks))


def check_reference(names: Sequence[str], reference: Reference) -> None:
    """Raise UsageError, before anything is drawn, for a metric that needs more than a file of statistics holds."""
    for name in names:
        if (rows := MEASURES[name].rows) is not None:
            reference.rows(rows, MEASURES[name].title)


def measure_all(names: Sequence[str], seen: Compared, log: Callable[[str], None]) -> dict[str, Estimate | None]:
    """Return each metric's value, None where there is nothing to measure; `log` gets the reason."""
    found: dict[str, Estimate | None] = {}
    for name in names:
        try:
            found[name] = MEASURES[name].measure(seen)
        except ValueError as error:  # too few pictures
            log(f"{MEASURES[name].title} is left out: {error}")
            found[name] = None
    return found


def _some(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    if len(rows) == count:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))]
