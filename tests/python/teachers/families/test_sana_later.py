"""SANA-1.5, which is SANA with norms on queries and keys, and SANA-Sprint as a student to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)

import distill_runs as runs
from ddx.errors import UsageError
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.starting_weights import start_from, starting_weights
from ddx.workspace import Workspace
from distilling import make_store
from pipelines import fill_hub_cache, make_sana, make_stable_diffusion

NORMS = {"qk_norm": "rms_norm_across_heads"}
GUIDANCE = 4.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher like those that SANA-Sprint is distilled from."""
    return make_sana(tmp_path_factory.mktemp("later") / "dense", timestep_scale=0.001, **NORMS)


@pytest.fixture(scope="module")
def sprint(folder: Path) -> Path:
    whole: Any = SanaPipeline.from_pretrained(folder)
    torch.manual_seed(5)
    config = {**whole.transformer.config, "guidance_embeds": True, "timestep_scale": 1.0}
    transformer: Any = SanaTransformer2DModel.from_config(config)
    parts = {"tokenizer": whole.tokenizer, "text_encoder": whole.text_encoder, "vae": whole.vae}
    SanaSprintPipeline(transformer=transformer, scheduler=SCMScheduler(), **parts).save_pretrained(
        folder.parent / "sprint"
    )
    return folder.parent / "sprint"


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(folder)


def test_sana_15_draws_as_its_pipeline(tmp_path: Path) -> None:
    folder = make_sana(tmp_path / "sana15", **NORMS)
    pipe: Any = SanaPipeline.from_pretrained(folder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "use_resolution_binning": False, "output_type": "latent"}
    sigmas, generator = [1.0, 2 / 3, 1 / 3], torch.Generator().manual_seed(5)
    expected = pipe("a red circle", sigmas=sigmas, guidance_scale=4.5, generator=generator, **call).images
    teacher = load_teacher(folder)
    assert any(".norm_q." in name for name in teacher.network().state_dict())
    (condition,), generators = teacher.encode_text(["a red circle"]), [torch.Generator().manual_seed(5)]
    drawn = teacher.sample(condition, teacher.null_condition(), num_steps=3, guidance=4.5, generators=generators)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


def test_sprints_weights_draw_what_its_pipeline_draws(teacher: Teacher, sprint: Path, tmp_path: Path) -> None:
    """The angles, the times, the network's input and output, and the guidance, in one figure."""
    said: list[str] = []
    weights = starting_weights(sprint, teacher, Workspace(tmp_path), (2.0, 4.0), said.append)
    assert weights is not None and said == [f"starts from {sprint}, at guidance 4"]
    network = teacher.new_student_network()
    start_from(network, weights)
    pipe: Any = SanaSprintPipeline.from_pretrained(sprint)
    pipe.set_progress_bar_config(disable=True)
    (condition,) = teacher.encode_text(["a red circle"])
    call = {"height": 64, "width": 64, "use_resolution_binning": False, "output_type": "latent"}
    for angles in ([1.57080], [1.57080, 1.3], [1.4, 1.4 * 2 / 3, 1.4 / 3]):
        own = {"max_timesteps": angles[0], "intermediate_timesteps": 1.3 if len(angles) == 2 else None, **call}
        expected, another = (
            pipe(
                "a red circle",
                num_inference_steps=len(angles),
                guidance_scale=scale,
                generator=torch.Generator().manual_seed(3),
                **own,
            ).images
            for scale in (4.0, 1.0)
        )
        generator = torch.Generator().manual_seed(3)
        shape = (1, *teacher.latent_shape())
        x0 = None
        with torch.no_grad():
            for angle in torch.tensor(angles, dtype=torch.float64)[:, None]:
                noise = torch.randn(shape, generator=generator)
                cos, sin = angle.cos(), angle.sin()
                x = noise if x0 is None else cos * x0 + sin * noise
                x, t = x / (cos + sin), sin / (cos + sin)
                x0 = x - t * teacher.predict(network, x.float(), t, condition)
        assert x0 is not None and (x0 - expected).norm() < 1e-5 * expected.norm()
        assert (another - expected).norm() > 1e-3 * expected.norm()


def test_a_run_that_learns_nothing_ends_as_sprint(folder: Path, teacher: Teacher, sprint: Path, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "store", rows=8)
    settings = {"train_steps": 1, "learning_rate": 1e-30, "checkpoint_every": 0, "method": "lcm"}
    fixed = {"guidance_min": GUIDANCE, "guidance_max": GUIDANCE}
    student = runs.run(folder, store, tmp_path, from_student=str(sprint), **settings, **fixed)
    weights = starting_weights(sprint, teacher, Workspace(tmp_path), (GUIDANCE, GUIDANCE))
    ended = StudentFolder(student).weights()
    assert weights is not None and all(torch.equal(ended[name], value) for name, value in weights.items())


def test_sprint_may_be_on_the_hub(
    teacher: Teacher, folder: Path, sprint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fill_hub_cache(tmp_path, "someone/Sprint", sprint)
    fill_hub_cache(tmp_path, "someone/teacher", folder)
    said: list[str] = []
    assert starting_weights(Path("someone/Sprint"), teacher, Workspace(tmp_path), say=said.append)
    assert said == ["starts from someone/Sprint, at guidance 4.5"]
    with pytest.raises(UsageError, match="someone/teacher is a SanaPipeline, not a published student"):
        starting_weights(Path("someone/teacher"), teacher, Workspace(tmp_path))


def test_what_sprint_does_not_fit_is_refused_and_it_is_no_teacher(
    teacher: Teacher, sprint: Path, tmp_path: Path
) -> None:
    def start(other: Path) -> None:
        starting_weights(sprint, load_teacher(other), Workspace(tmp_path))

    with pytest.raises(UsageError, match="a student already, of the family SANA") as error:
        load_teacher(sprint)
    assert "--from-student" in str(error.value.hint)
    for number, config in enumerate(({}, NORMS, {"timestep_scale": 0.001})):
        with pytest.raises(UsageError, match="times from 0 to 1 and has norms") as error:
            start(make_sana(tmp_path / f"plain-{number}", **config))
        assert f"ddx prepare --teacher plain-{number}" in str(error.value.hint)
    with pytest.raises(UsageError, match="do not fit the teacher"):
        start(make_sana(tmp_path / "deeper", layers=3, timestep_scale=0.001, **NORMS))
    with pytest.raises(UsageError, match="is of another"):
        start(make_stable_diffusion(tmp_path / "sd"))
