"""The plots of a store's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ddx.data.inspection.bar_charts import column_chart, row_chart
from ddx.data.inspection.statistics import (
    BINS_PER_DOUBLING,
    DOUBLINGS,
    Bars,
    Moments,
    PictureCounts,
    bars,
    nice_step,
    quantile,
)
from ddx.data.layout import Array

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_STATUSES = 12
NUM_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot: its file is `<name>.png`, and `note` says in words what it shows."""

    name: str
    title: str
    note: str
    image: Image


def failure_plot(failed: Mapping[str, int]) -> Plot:
    """Failed rows by status, the most frequent first; at least one."""
    ordered = sorted(failed.items(), key=lambda item: -item[1])
    if len(ordered) > NUM_STATUSES:
        rest = ordered[NUM_STATUSES - 1 :]
        ordered = [*ordered[: NUM_STATUSES - 1], (f"{len(rest)} others", sum(count for _, count in rest))]
    note = f"{sum(failed.values()):,} rows have neither latents nor text"
    return Plot(name="failures", title="Failed rows by status", note=note, image=row_chart(ordered))


def picture_plots(counts: PictureCounts) -> list[Plot]:
    """Width, height and aspect ratio of at least one picture."""
    aspect, middle, total = counts.aspect, len(counts.aspect) // 2, counts.aspect.sum()
    shares = (aspect[middle + 1 :].sum() / total, aspect[middle] / total, aspect[:middle].sum() / total)
    ticks = [
        (middle + doubling * BINS_PER_DOUBLING + 0.5, f"{2 ** max(doubling, 0)}:{2 ** max(-doubling, 0)}")
        for doubling in range(-DOUBLINGS, DOUBLINGS + 1)
    ]
    return [
        _sides("width", "Width of the source pictures", counts.width),
        _sides("height", "Height of the source pictures", counts.height),
        Plot(
            name="aspect",
            title="Aspect ratio, width to height",
            note="{:.0%} landscape, {:.0%} square (within 4%), {:.0%} portrait".format(*shares),
            image=column_chart(aspect.tolist(), ticks),
        ),
    ]


def token_plot(counts: Array) -> Plot:
    """Caption lengths, of which `counts[n]` have n tokens; at least one."""
    shown = bars(counts)
    mean = counts @ np.arange(len(counts)) / counts.sum()
    note = f"mean {mean:.1f}, median {quantile(counts, 0.5)}; longest {counts.nonzero()[0][-1]} of at most "
    note += f"{len(counts) - 1}{_open_end(shown, '')}"
    return Plot(name="tokens", title="Caption length in tokens", note=note, image=_histogram(shown))


def latent_plots(moments: Moments, num_rows: int, scaling_factor: Array) -> list[Plot]:
    """Mean and standard deviation of each channel, as measured on `num_rows` rows; one scaling factor, or `[C]`."""
    num = len(moments.mean)
    step = max(1, round(nice_step(num, 2 * NUM_TICKS)))
    ticks = [(channel + 0.5, str(channel)) for channel in range(0, num, step)]
    typical, scaled = (float(np.sqrt(np.square(std).mean())) for std in (moments.std, moments.std * scaling_factor))
    plural = "s" if num_rows > 1 else ""
    return [
        Plot(
            name="latent-mean",
            title="Mean of each latent channel",
            note=f"measured on {num_rows:,} row{plural}, unscaled as in the store",
            image=column_chart(moments.mean.tolist(), ticks),
        ),
        Plot(
            name="latent-std",
            title="Standard deviation of each latent channel",
            note=f"root mean square {typical:.3g}; scaled {scaled:.3g}, about 1 is usual",
            image=column_chart(moments.std.tolist(), ticks),
        ),
    ]


def _sides(name: str, title: str, counts: Array) -> Plot:
    shown = bars(counts)
    low, median, high = (quantile(counts, share) for share in (0.05, 0.5, 0.95))
    note = f"median {median:,} px, nine of ten from {low:,} to {high:,} px{_open_end(shown, ' px')}"
    return Plot(name=name, title=title, note=note, image=_histogram(shown))


def _open_end(shown: Bars, unit: str) -> str:
    last = shown.first + (len(shown.counts) - 1) * shown.step
    return f"; the last bar: {last:,}{unit} and more" if shown.open_end else ""


def _histogram(shown: Bars) -> Image:
    """Ticks stand at the left edge of bars, or below them where a bar is one value."""
    span = len(shown.counts) * shown.step
    step = max(shown.step, round(nice_step(span, NUM_TICKS)))
    shift = 0.5 if shown.step == 1 else 0.0
    first = -(-shown.first // step) * step
    ticks = [
        ((value - shown.first) / shown.step + shift, f"{value:,}") for value in range(first, shown.first + span, step)
    ]
    return column_chart(shown.counts, ticks)
