"""What holds for every family: it draws what its own pipeline draws, and its students are pipelines of its class."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddx.cli import main
from ddx.errors import DdxError, UsageError
from ddx.methods.base import STUDENT
from ddx.networks.lora_header import DIFFUSERS_FILE
from ddx.run_record import write_run
from ddx.sampling.card import card_text
from ddx.sampling.pipeline import StudentPipeline, dtype_keyword
from ddx.sampling.snippet import snippet
from ddx.sampling.student import StudentFolder
from ddx.teachers.base import Teacher
from ddx.teachers.families.table import FAMILIES
from ddx.teachers.registry import load_teacher
from ddx.teachers.stored_weights import stand_ins, weights_later
from ddx.training.export import export_student
from distill_runs import run
from distilling import make_batch, make_store, make_trainer
from tiny import NAMES, Tiny, open_pipeline

SIDE = 64  # pixels; where a denoiser's config does not say it, a family's own size is that of the published models
PROMPTS = ("", "cat", "the red cat and a very long sentence that goes on and on " * 20)
# each family trains by all of these between the tests, and by each at least once
METHODS = ("lcm", "sid", "dmd2", "sana-sprint", "twinflow", "shortcut", "scm")
TAKE_INTERVALS = ("twinflow", "shortcut")


class Ground:
    """A family's tiny pipeline, and the teacher that opens it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tiny = Tiny(name)
        self.family = next(family for family in FAMILIES if family.name == name)
        self.folder = self.tiny.make(folder / name)
        self.teacher: Teacher = load_teacher(self.folder, resolution=SIDE)
        self.work = folder

    def pipeline(self, **components: Any) -> Any:
        return open_pipeline(self.folder, **components)

    def call(self, num_steps: int, scale: float, size: tuple[int, int]) -> dict[str, Any]:
        """The pipeline's arguments for the steps that the teacher takes."""
        arguments = {"num_inference_steps": num_steps, "height": size[0], "width": size[1], **self.tiny.guided(scale)}
        sigmas = getattr(self.teacher, "sampling_sigmas", None)
        if sigmas is not None:
            arguments["sigmas"] = sigmas(num_steps)
        return {**arguments, **self.family.call.always}


@pytest.fixture(scope="module", params=NAMES)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    torch.set_num_threads(1)
    return Ground(request.param, tmp_path_factory.mktemp(request.param))


# prompt, steps, guidance, which of the family's sizes
DRAWN = ((0, 2, 3.0, 0), (1, 1, 1.0, 1), (2, 3, 4.5, 0), (1, 2, 7.0, 1))


@pytest.mark.parametrize(("prompt", "steps", "scale", "size"), DRAWN)
def test_it_draws_what_its_pipeline_draws(
    ground: Ground, prompt: int, steps: int, scale: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text, its null condition, its network, its guidance and its times, in one figure."""
    monkeypatch.setattr("ddx.teachers.parts.batches.ROWS", 1)  # a batch of texts rounds differently
    monkeypatch.setattr("ddx.teachers.parts.batches.LENGTH_STEP", ground.tiny.length_step)
    teacher, pixels = ground.teacher, ground.tiny.sizes[size]
    shape = teacher.latent_shape(pixels)
    scheduler, _ = teacher.sampling_scheduler(steps, shape)
    pipeline = ground.pipeline(scheduler=type(scheduler).from_config(scheduler.config))
    found = pipeline(
        prompt=PROMPTS[prompt],
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        **ground.call(steps, scale, pixels),
    ).images
    (condition,) = teacher.encode_text([PROMPTS[prompt]])
    noise = teacher.initial_noise([torch.Generator().manual_seed(5)], pixels)
    drawn = teacher.sample(condition, teacher.null_condition(), num_steps=steps, guidance=scale, noise=noise)
    expected = ground.tiny.unpacked(found, shape)
    assert float(expected.std()) > 0.05 and drawn.shape == expected.shape
    if ground.tiny.exact:
        assert torch.equal(drawn, expected)
    else:
        torch.testing.assert_close(drawn, expected, rtol=0, atol=3e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_weights_may_stay_in_their_files(ground: Ground, dtype: torch.dtype) -> None:
    """Then everything else is as it was opened with them: buffers and what else is computed, the config, and how many
    random numbers were drawn."""
    drawn = []
    torch.manual_seed(0)
    whole: Any = ground.teacher._load_denoiser(dtype)
    drawn.append(torch.rand(()))
    torch.manual_seed(0)
    with weights_later() as wish:
        later: Any = ground.teacher._load_denoiser(dtype)
    drawn.append(torch.rand(()))
    assert wish.refused == [] and drawn[0] == drawn[1]
    places = stand_ins(later)
    expected = dict(whole.named_parameters())
    assert list(places) == list(expected) == [name for name, _ in later.named_parameters()]
    for name, value in expected.items():
        place = places[name]
        assert (place.dtype, place.shape) == (value.dtype, value.shape) and torch.equal(place.stored.to(dtype), value)
        assert place.untyped_storage().nbytes() == value.element_size() and place.isnan().all()
    for module, other in zip(whole.modules(), later.modules(), strict=True):
        made = {**{k: v for k, v in vars(module).items() if isinstance(v, torch.Tensor)}, **module._buffers}
        for name, value in made.items():
            found = getattr(other, name)
            assert found.dtype == value.dtype and torch.equal(found, value), name
    assert dict(later.config) == dict(whole.config) and type(later) is type(whole)


def test_prompts_and_sizes_change_what_it_draws(ground: Ground) -> None:
    """Else the test above could compare two constants."""
    teacher = ground.teacher
    noise = teacher.initial_noise([torch.Generator().manual_seed(5)])
    drawn = [
        teacher.sample(condition, teacher.null_condition(), num_steps=2, guidance=scale, noise=noise)
        for condition in teacher.encode_text(PROMPTS[1:])
        for scale in (2.0, 4.0)
    ]
    for number, latents in enumerate(drawn[1:]):
        assert (latents - drawn[number]).abs().max() > 1e-4


def test_pictures_go_through_the_pipelines_autoencoder(ground: Ground) -> None:
    teacher, pixels = ground.teacher, ground.tiny.sizes[1]
    pipeline, steps = ground.pipeline(), 2
    scheduler, _ = teacher.sampling_scheduler(steps, teacher.latent_shape(pixels))
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)

    def drawn(kind: str) -> Any:
        generator = torch.Generator().manual_seed(1)
        return pipeline(prompt="cat", generator=generator, output_type=kind, **ground.call(steps, 3.0, pixels)).images

    latents = ground.tiny.unpacked(drawn("latent"), teacher.latent_shape(pixels))
    expected = (torch.as_tensor(drawn("np")) * 255).round().to(torch.uint8)
    pictures = teacher.decode(latents)
    assert pictures.shape == expected.shape == (1, *pixels, 3)
    assert (pictures.int() - expected.int()).abs().max() <= (0 if ground.tiny.exact else 1)
    raw = teacher.encode_images(pictures)
    assert raw.shape == latents.shape
    torch.testing.assert_close(teacher.unscale(teacher.scale(raw)), raw, rtol=0, atol=1e-5)
    pixels_in = pictures.permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0
    if "Causal" in type(getattr(pipeline.vae.encoder, "conv_in", None)).__name__:  # of videos
        pixels_in = pixels_in[:, :, None]
    with torch.no_grad():
        encoded = pipeline.vae.encode(pixels_in).to_tuple()[0]
    mode = encoded.mode() if teacher.has_posterior else encoded
    # whatever their order: some families pack them, and decoding above has checked that
    torch.testing.assert_close(raw.flatten().sort().values, mode.flatten().sort().values, rtol=0, atol=1e-5)


def test_every_part_is_hashed_and_exported_or_refused(ground: Ground, tmp_path: Path) -> None:
    index = json.loads((ground.folder / "model_index.json").read_text())
    parts = {part for part, entry in index.items() if isinstance(entry, list) and entry[1] is not None}
    teacher = ground.teacher
    denoiser = teacher.denoiser_part
    assert parts - set(teacher.left_out) == {denoiser, "scheduler", *teacher.stored_parts}
    before = teacher.fingerprint()["weights"]
    for part in teacher.stored_parts:
        folder = Path(shutil.copytree(ground.folder, tmp_path / part))
        files = sorted(folder.glob(f"{part}/*.safetensors")) or sorted(folder.glob(f"{part}/*.json"))
        content = files[0].read_bytes()  # still a file of its kind: a weight changes, or a space is added
        files[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if files[0].suffix != ".json" else content + b" ")
        assert load_teacher(folder).fingerprint()["weights"] != before, part
    teacher.save_student(tmp_path / "student", teacher.new_student_network())
    student = json.loads((tmp_path / "student" / "model_index.json").read_text())
    assert {part for part, entry in student.items() if isinstance(entry, list) and entry[1] is not None} == {
        denoiser,
        "scheduler",
        *teacher.stored_parts,
    }
    index["text_encoder_9"] = ["transformers", "CLIPTextModel"]
    folder = Path(shutil.copytree(ground.folder, tmp_path / "more"))
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DdxError, match="text_encoder_9"):
        load_teacher(folder)


@pytest.mark.parametrize("rank", [0, 4])
def test_its_students_draw_as_its_pipeline_with_nothing_of_ours(ground: Ground, rank: int, tmp_path: Path) -> None:
    methods = METHODS[: len(METHODS) - bool(rank)]  # low-rank matrices hardly move in two steps of the last one
    methods = tuple(name for name in methods if ground.teacher.folds_numbers or name not in TAKE_INTERVALS)
    check_student(ground, methods[(2 * NAMES.index(ground.tiny.name) + bool(rank)) % len(methods)], rank, tmp_path)


@pytest.mark.slow
def test_every_method_trains_on_it(ground: Ground) -> None:
    """Two steps of each, whole and low-rank in turns, are finite and move the student."""
    for number, name in enumerate((*METHODS, "sida"), start=NAMES.index(ground.tiny.name)):
        rank = 4 * (number % 2)
        if not ground.teacher.folds_numbers and name in TAKE_INTERVALS:
            with pytest.raises(UsageError):
                make_trainer(ground.teacher, method=name, lora_rank=rank)
            continue
        trainer = make_trainer(ground.teacher, method=name, learning_rate=1e-2, lora_rank=rank)
        before = [p.detach().clone() for p in trainer.trained[STUDENT].parameters]
        for step in range(2):
            trainer.step(step, [make_batch(ground.teacher, step)])
        assert int(trainer.skipped) == 0, name
        if name == "scm" and ground.teacher.embedded_guidance:
            continue  # the student begins as the guided teacher, and the tangent's second half at 0: nothing to learn
        after = trainer.trained[STUDENT].parameters
        assert any(not torch.equal(p, old) for p, old in zip(after, before, strict=True)), name


def check_student(ground: Ground, method_name: str, rank: int, folder: Path) -> None:
    """Train two steps, export, and compare: the method's own formula, `ddx sample`, and the pipeline without ddx."""
    teacher = ground.teacher
    trainer = make_trainer(teacher, method=method_name, learning_rate=0.1 if rank else 1e-2, lora_rank=rank)
    for step in range(2):
        trainer.step(step, [make_batch(teacher, step)])
    assert int(trainer.skipped) == 0
    method, student = trainer.method, trainer.final_student()
    condition = make_batch(teacher).condition.index(slice(0, 1))
    notes = export_student(method, student, folder / "student", "float32", torch.float32)
    record = {"kind": "student", "prediction": teacher.prediction, "resolution": SIDE, **method.export_notes(), **notes}
    write_run(folder / "student", record, finished=True)
    opened, files = StudentPipeline(folder / "student", device="cpu"), StudentFolder(folder / "student")
    assert type(opened.pipeline).__name__ in ground.family.pipelines
    for steps in (1, 4):
        arguments = files.call_arguments(steps)
        generator = torch.Generator().manual_seed(3)
        noises = [teacher.initial_noise([generator]) for _ in range(steps)]
        noises[1:] = [ground.tiny.fresh(noise, teacher.latent_shape()) for noise in noises[1:]]
        expected = method.draw(student, noises, condition)
        plain = open_pipeline(files.for_steps(steps))
        found = seeded(ground, plain, "a red circle", arguments, output_type="latent")
        found = ground.tiny.unpacked(found, teacher.latent_shape())
        assert float((found - expected).norm() / expected.norm()) < 2e-3, steps
        picture = seeded(ground, plain, "a red circle", arguments, output_type="pil")[0]
        assert picture.tobytes() == opened.draw(["a red circle"], [3], steps)[0].tobytes(), steps
        stored = opened.draw_conditions(condition, [3], steps)[0].astype(int)
        assert abs(stored - np.asarray(picture).astype(int)).max() <= 1
    with contextlib.chdir(files.for_steps(steps)):  # the model card's program
        exec(snippet(files, "a red circle", steps=steps, seed=3), {})
        assert Image.open("out.png").tobytes() == picture.tobytes()
    wide = ground.tiny.sizes[1]
    found = seeded(
        ground, open_pipeline(files.for_steps(1)), "cat", files.call_arguments(1, resolution=wide), output_type="pil"
    )
    drawn = opened.draw(["cat"], [3], 1, resolution=wide)[0]
    assert drawn.size == wide[::-1] and drawn.tobytes() == found[0].tobytes()
    if not rank:  # in bfloat16 most pipelines draw their noise in it, and so does ours
        half = open_pipeline(files.for_steps(1), **{dtype_keyword(): torch.bfloat16})
        found = seeded(ground, half, "cat", files.call_arguments(1), output_type="pil")[0]
        drawn = StudentPipeline(folder / "student", device="cpu", dtype="bf16").draw(["cat"], [3], 1)[0]
        assert drawn.tobytes() == found.tobytes()
    if rank:
        assert (files.for_steps(1) / DIFFUSERS_FILE).is_file()
        check_lora(ground, files)
    assert STUDENT in trainer.trained


def seeded(ground: Ground, pipeline: Any, prompt: str, arguments: dict[str, Any], *, output_type: str) -> Any:
    """The pipeline's call as the model card has it: a generator for its scheduler where it hands on none."""
    generator = torch.Generator().manual_seed(3)
    if not ground.family.call.seeds_steps:
        own = type(pipeline.scheduler).step
        pipeline.scheduler.step = lambda *a, **k: own(pipeline.scheduler, *a, **{**k, "generator": generator})
    return pipeline(prompt=prompt, generator=generator, output_type=output_type, **arguments).images


def check_lora(ground: Ground, files: StudentFolder) -> None:
    """The teacher's pipeline with the low-rank file draws what the merged student draws."""
    import diffusers

    scheduler = getattr(diffusers, files.scheduler_class).from_pretrained(files.folder, subfolder="scheduler")
    arguments, folder = files.call_arguments(1), files.for_steps(1)
    merged = seeded(ground, open_pipeline(folder), "a red circle", arguments, output_type="latent")
    pipeline = ground.pipeline(scheduler=scheduler)
    card = card_text(files)
    assert ("load_lora_weights" in card) == hasattr(pipeline, "load_lora_weights") == ground.family.loads_lora
    if not ground.family.loads_lora:
        return
    allowed = 1e-5 * float(merged.abs().max())
    without = seeded(ground, pipeline, "a red circle", arguments, output_type="latent")
    assert (without - merged).abs().max() > 5 * allowed
    pipeline.load_lora_weights(folder)
    found = seeded(ground, pipeline, "a red circle", arguments, output_type="latent")
    assert (found - merged).abs().max() <= allowed


def test_from_pictures_to_a_student(ground: Ground, tmp_path: Path) -> None:
    """The three stages, with a store of its own."""
    store = make_store(ground.folder, tmp_path / "store", rows=8, resolution=SIDE)
    assert main.run(["inspect", str(store), "--report", "--out", str(tmp_path / "report")]) == 0
    settings: dict[str, Any] = {"train_steps": 2, "checkpoint_every": 0, "method": "lcm", "resolution": SIDE}
    student = run(ground.folder, store, tmp_path / "runs", **settings)
    pictures = StudentPipeline(student, device="cpu").draw(["a red circle"], [0], 1)
    assert pictures[0].size == (SIDE, SIDE)
    assert StudentFolder(student).record["teacher_fingerprint"] == ground.teacher.fingerprint()
