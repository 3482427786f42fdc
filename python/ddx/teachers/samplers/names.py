"""The samplers by name, and for which processes each one is. This module needs no torch: `--help` reads it."""

from __future__ import annotations

from dataclasses import dataclass

OWN = "own"
ANALYTIC = "analytic-dpm"


@dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """What is known of a sampler without opening a teacher.

    processes: the names of the processes that it is for. order: of convergence; None for one that draws fresh noise,
    whose pictures do not follow from the first noise alone. evaluations: of the network a step.
    """

    title: str
    processes: tuple[str, ...]
    order: int | None
    evaluations: int = 1

    @property
    def deterministic(self) -> bool:
        """Whether a picture follows from its first noise."""
        return self.order is not None

    def passes(self, num_steps: int) -> int:
        """Return the evaluations of the network in that many steps: the last step takes one."""
        return self.evaluations * num_steps - (self.evaluations - 1)


SAMPLERS = {
    OWN: SamplerSpec(title="the teacher's pipeline as it is", processes=("flow", "vp", "edm"), order=1),
    "euler": SamplerSpec(title="Euler's rule", processes=("flow", "vp"), order=1),
    "heun": SamplerSpec(title="Heun's rule (Karras et al. 2022)", processes=("flow", "vp"), order=2, evaluations=2),
    "ddim": SamplerSpec(title="DDIM without noise (Song et al. 2021)", processes=("vp",), order=1),
    "ddpm": SamplerSpec(title="DDPM, the posterior's variance (Ho et al. 2020)", processes=("vp",), order=None),
    "dpmsolver++": SamplerSpec(title="DPM-Solver++(2M) (Lu et al. 2022)", processes=("flow", "vp"), order=2),
    "unipc": SamplerSpec(
        title="UniPC-2, predictor and corrector (Zhao et al. 2023)", processes=("flow", "vp"), order=3
    ),
    ANALYTIC: SamplerSpec(
        title="Analytic-DPM, variances measured on a store (Bao et al. 2022)", processes=("flow", "vp"), order=None
    ),
}
NAMES = tuple(SAMPLERS)
DETERMINISTIC = tuple(name for name, spec in SAMPLERS.items() if spec.deterministic)
