"""The samplers of a teacher: their orders on the exact ground, and pipelines that draw the same pictures by them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddx.bench.mixtures.mixture import circle
from ddx.bench.mixtures.run import FastRandomNumbers
from ddx.bench.mixtures.solving import MIXTURE, NUM, order_of
from ddx.bench.mixtures.teacher import MixtureTeacher
from ddx.cli.main import run
from ddx.errors import UsageError
from ddx.methods.base import Batch
from ddx.methods.parts.flow_view import FlowView
from ddx.methods.parts.pairs import sampled_end
from ddx.process import VPProcess
from ddx.sampling.pipeline import StudentPipeline
from ddx.sampling.teacher import draw_with_teacher
from ddx.sampling.teacher_folder import TeacherFolder
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.teachers.samplers.analytic import Known
from ddx.teachers.samplers.names import ANALYTIC, NAMES, OWN, SAMPLERS
from ddx.teachers.samplers.sampler import TeacherSampler, cannot_draw
from tiny import Tiny


def noise() -> Tensor:
    return torch.randn(NUM, 2, 1, 1, generator=torch.Generator().manual_seed(0))


ORDERED = [
    (process, name)
    for process in ("flow", "vp-eps")
    for name, spec in SAMPLERS.items()
    if spec.order is not None and name != OWN and MixtureTeacher(circle(), process).process.name in spec.processes
]


@pytest.mark.parametrize(("process", "name"), ORDERED)
def test_the_order_of_convergence(process: str, name: str) -> None:
    """Euler 1, Heun 2, DPM-Solver++(2M) 2, UniPC-2 with its corrector 3, from 50 steps to 200."""
    order, _, last = order_of(name, process)
    assert abs(order - (SAMPLERS[name].order or 0)) < 0.3 and last < 0.01


class Given:
    """Variances that nobody measured."""

    def at(self, teacher: Teacher, times: Sequence[float]) -> Known:
        return Known(errors=(0.3,) * len(times), variance=1.0, half_range=3.0)

    def fingerprint(self) -> str:
        return "given"


def named(name: str) -> TeacherSampler:
    return TeacherSampler(name=name, variances=Given() if name == ANALYTIC else None)


class Opened:
    """A tiny pipeline of a family: the teacher that opens it, and what its pipeline is called with."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tiny = Tiny(name)
        self.teacher: Teacher = load_teacher(self.tiny.make(folder / name), resolution=64)

    def samplers(self) -> list[str]:
        return [name for name in NAMES if name != OWN and cannot_draw(name, self.teacher) is None]


# a shift that is constant, one that depends on the size in a pipeline that gives its own sigmas, and a table
@pytest.fixture(scope="module", params=["sana", "flux1", "stable-diffusion"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    torch.set_num_threads(1)
    return Opened(request.param, tmp_path_factory.mktemp("samplers"))


def test_the_teachers_pipeline_draws_the_same_picture_by_each_sampler(opened: Opened) -> None:
    """`ddx sample` changes the scheduler of the pipeline; evaluate and precompute draw with the teacher itself."""
    teacher, pictures = opened.teacher, []
    assert set(opened.samplers()) >= {"euler", "heun", "dpmsolver++", "unipc"}
    pixels = opened.tiny.sizes[1]
    (condition,) = teacher.encode_text(["a red circle"])
    for name in opened.samplers():
        sampler = named(name)
        pipeline = StudentPipeline(TeacherFolder(teacher), device="cpu", sampler=sampler)
        (found,) = pipeline.draw(["a red circle"], [3], 4, resolution=pixels)
        (drawn,) = draw_with_teacher(
            teacher, [condition], teacher.null_condition(), [3], steps=4, resolution=pixels, sampler=sampler
        )
        difference = abs(np.asarray(found).astype(int) - drawn.astype(int))
        packed = hasattr(opened.tiny.module, "unpacked")  # the pipeline draws fresh noise in the order of its tokens
        assert difference.max() <= 2 or (packed and not SAMPLERS[name].deterministic), name
        pictures.append(drawn.astype(int))
    for one, other in pairwise(pictures):
        assert abs(one - other).max() > 2


def test_a_batch_does_not_change_what_fresh_noise_draws(opened: Opened) -> None:
    teacher = opened.teacher
    (condition,) = teacher.encode_text(["a red circle"])
    for name in opened.samplers():
        drawn = [
            draw_with_teacher(
                teacher,
                [condition] * 3,
                teacher.null_condition(),
                [1, 2, 3],
                steps=2,
                batch_size=size,
                sampler=named(name),
            )
            for size in (1, 3)
        ]
        assert abs(drawn[0].astype(int) - drawn[1].astype(int)).max() <= 2, name


def test_a_sampler_of_another_process_is_refused_with_those_that_fit(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(opened.teacher.folder)
    if opened.tiny.name != "stable-diffusion":
        for command in (["sample", "--dry-run"], ["evaluate"]):
            arguments = [*command, "--teacher", folder, "--sampler", "ddpm", "--workspace", str(tmp_path)]
            assert run(arguments) == 2
            error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
            assert "ddpm" in error and "flow matching" in error
            assert "own, euler, heun, dpmsolver++, unipc or analytic-dpm" in hint
    else:
        assert "ddpm" in opened.samplers()
    assert run(["sample", "--sampler", "heun", "--workspace", str(tmp_path)]) == 2
    assert "--teacher" in capsys.readouterr().err


def test_a_table_without_signal_has_no_first_ratio() -> None:
    teacher = MixtureTeacher(MIXTURE, "vp-v")
    kept = teacher.process.alphas_cumprod.clone()
    kept[-1] = 0.0
    teacher.process = VPProcess(alphas_cumprod=kept)
    with pytest.raises(UsageError, match="no picture at all"):
        TeacherSampler(name="heun").scheduler(teacher, teacher.latent_shape())
    condition = teacher.null_condition().expand(NUM)
    for name in ("euler", "ddim", "ddpm", "dpmsolver++", "unipc"):
        generators = [torch.Generator().manual_seed(n) for n in range(NUM)]
        found = teacher.sample(
            condition,
            teacher.null_condition(),
            num_steps=5,
            noise=noise(),
            generators=generators,
            sampler=TeacherSampler(name=name),
        )
        assert torch.isfinite(found).all(), name
        assert float(found.std()) == pytest.approx(1.2, abs=0.4), name


def test_a_method_starts_its_sampler_at_the_teachers_noise() -> None:
    """Its states are on the flow path; on a table they are others than the teacher's."""
    for process in ("flow", "vp-eps-sd"):
        teacher = MixtureTeacher(MIXTURE, process)
        view, condition = FlowView(teacher), teacher.null_condition().expand(NUM)
        batch = Batch(x0=noise(), condition=condition, null=teacher.null_condition(), random=FastRandomNumbers(0, NUM))
        found = sampled_end(view, "dpmsolver++", view.start(noise(), view.t_max), batch, torch.ones(NUM), 5)
        expected = teacher.sample(
            condition,
            teacher.null_condition(),
            num_steps=5,
            noise=noise(),
            sampler=TeacherSampler(name="dpmsolver++"),
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
