"""The variances of Analytic-DPM as means over latents (Bao et al. 2022, equation 8 and section 3.1).

    error = E|x_0 - x0_hat(x_n)|^2 / d,        gamma = E|eps_hat(x_n)|^2 / (d b_n)

For an exact network the two say the same: ``error = b_n / a_n (1 - b_n gamma)``. A step uses the error: its relative
uncertainty is small where nearly all is noise, and for a network that is not exact it is the best variance around its
mean (Bao et al. 2022b, arXiv:2206.07309).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddx.progress import NullProgress, Progress
from ddx.teachers.samplers.analytic import chain

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher
    from ddx.teachers.condition import Condition


@torch.no_grad()
def measure_variances(
    teacher: Teacher,
    batches: Iterable[tuple[Tensor, Condition]],
    null: Condition,
    times: Sequence[float],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return {"times": {time: {"error", "gamma"}}, "variance", "half_range"} over scaled latents `[B, C, h, w]`.

    variance: within a channel, a mean over channels. half_range: of all values. The network has the caption and no
    guidance: what is measured is what the data leave open. Noise follows from the number of the batch and the time, so
    a time has the same values whichever others are asked for.
    """
    progress = progress or NullProgress()
    scale = teacher.default_guidance if teacher.embedded_guidance else 1.0
    sums = {t: torch.zeros(2, dtype=torch.float64) for t in times}
    means, squares, count = torch.zeros(()), torch.zeros(()), 0
    lowest, highest = float("inf"), float("-inf")
    for number, (x0, condition) in enumerate(batches):
        count += 1
        means = means + x0.double().mean((0, 2, 3)).cpu()
        squares = squares + x0.double().square().mean((0, 2, 3)).cpu()
        lowest, highest = min(lowest, float(x0.min())), max(highest, float(x0.max()))
        for t in times:
            time = torch.full((len(x0),), t, dtype=torch.float64, device=x0.device)
            x_t = teacher.process.add_noise(x0, _noise(x0, number, t), time)
            output = teacher.guided(teacher.network(), x_t, time, condition, null, scale)
            found = teacher.process.convert(output, x_t, time, teacher.prediction, "x0")
            eps = teacher.process.convert(found, x_t, time, "x0", "eps")
            sums[t] += torch.stack([(x0 - found).double().square().mean(), eps.double().square().mean()]).cpu()
            progress.advance(1)
    variance = float((squares / count - (means / count).square()).mean())
    rows = {}
    for t, value in sums.items():
        error, length = (value / count).tolist()
        _, b = chain(teacher.process, torch.tensor(t, dtype=torch.float64))
        rows[time_key(t)] = {"error": error, "gamma": length / float(b)}
    return {"times": rows, "variance": variance, "half_range": (highest - lowest) / 2}


def time_key(t: float) -> str:
    """Return a process's time as the file names it."""
    return f"{t:.9g}"


def _noise(like: Tensor, batch: int, t: float) -> Tensor:
    digest = hashlib.blake2b(f"{batch}/{time_key(t)}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(like.shape, generator=generator).to(like.device)
