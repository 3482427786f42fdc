from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import SanaPipeline
from safetensors.torch import load_file

from ddx.cli.main import run
from ddx.config import build, read_yaml
from ddx.errors import UsageError
from ddx.run_record import read_run
from ddx.scenes.captions import parse_caption, sample_captions, sample_scenes
from ddx.teachers.families.sana_text import pipeline_defaults
from ddx.training.interruption import Interrupted
from ddx.training.teacher import train as train_module
from ddx.training.teacher.autoencoder import whitening_loss
from ddx.training.teacher.caption_questions import CLASSES, NOT_ASKED, ROLES, new_reader, reading_loss, scene_labels
from ddx.training.teacher.config import TeacherConfig
from ddx.training.teacher.flow import new_transformer, sample
from ddx.training.teacher.muon import Muon, orthogonalise, split_parameters
from ddx.training.teacher.stages import flow_schedule
from ddx.training.teacher.text import encode_captions, new_text_encoder, new_tokenizer, tokenise
from ddx.training.teacher.train import train_teacher

ROOT = Path(__file__).resolve().parents[3]

TINY = TeacherConfig(
    num_scenes=24,
    autoencoder_widths=(4, 8, 16, 32),
    autoencoder_layers=(0, 1, 1, 1),
    autoencoder_steps=3,
    autoencoder_batch_size=4,
    decoder_steps=2,
    vocab_size=300,
    text_width=32,
    text_layers=1,
    text_steps=3,
    text_batch_size=4,
    width=32,
    layers=1,
    flow_steps=4,
    flow_batch_size=4,
    warmup_steps=2,
    log_every=1,
    checkpoint_every=2,
    evaluate_captions=2,
    evaluate_steps=2,
)


class StopAt:
    """A progress that ends the run once a stage has advanced so far."""

    def __init__(self, stage: str, step: int) -> None:
        self.target, self.stop_at = stage, step
        self.stage, self.done = "", 0

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.stage, self.done = stage, 0

    def advance(self, n: int = 1, **stats: float | int | str) -> None:
        self.done += n
        if self.stage == self.target and self.done >= self.stop_at:
            raise Interrupted(hint="run the same command again")

    def log(self, message: str) -> None: ...

    def finish(self) -> None: ...


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}.{name}": value
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.fixture(scope="module", autouse=True)
def few_scores() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "FINAL_SCORES", ((1, 1.0), (2, 3.0)))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(TINY, tmp_path_factory.mktemp("teacher") / "whole")


def test_the_folder_is_a_pipeline_that_draws_by_itself(trained: Path) -> None:
    pipeline = SanaPipeline.from_pretrained(trained)
    assert pipeline.transformer.dtype == pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.float32
    call = {"height": 64, "width": 64, "use_resolution_binning": False, "num_inference_steps": 2, "output_type": "np"}
    images = pipeline("a small red circle", generator=torch.Generator().manual_seed(0), **call).images
    assert images.shape == (1, 64, 64, 3)


def test_the_record_says_what_was_done(trained: Path) -> None:
    record = read_run(trained)
    assert record is not None
    assert record["finished"] is True
    assert record["images_seen"] == 16
    assert [score["steps"] for score in record["scores"]] == [1, 2]
    lines = (trained / "training" / "flow" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_run_that_is_stopped_in_every_stage_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher"
    for stage, step in (("autoencoder", 3), ("text", 2), ("flow", 3), ("decoder", 1)):
        with pytest.raises(Interrupted):
            train_teacher(TINY, out, progress=StopAt(stage, step))
        assert not (out / "model_index.json").exists()
    train_teacher(TINY, out)
    expected, found = weights(trained), weights(out)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    assert len((out / "training" / "flow" / "metrics.jsonl").read_text().splitlines()) == TINY.flow_steps


def test_another_recipe_does_not_go_on_with_this_run(trained: Path) -> None:
    with pytest.raises(UsageError, match="width=32, not 64"):
        train_teacher(build(TeacherConfig, vars(TINY), {"width": 64}), trained)
    with pytest.raises(UsageError, match="already holds a run"):
        train_teacher(TINY, trained, resume=False)


def test_training_encodes_captions_as_the_pipeline_does(trained: Path) -> None:
    pipeline = SanaPipeline.from_pretrained(trained)
    captions = sample_captions(6, seed=1)
    expected, mask, null, null_mask = pipeline.encode_prompt(
        captions, True, device=torch.device("cpu"), complex_human_instruction=[pipeline_defaults()[0]]
    )
    tokens = tokenise(pipeline.tokenizer, captions)
    with torch.no_grad():
        found, found_mask = encode_captions(pipeline.text_encoder, tokens.prefix, tokens.ids, tokens.mask)
    assert mask.sum(dim=1).tolist() == found_mask.sum(dim=1).tolist()
    for row, count in enumerate(found_mask.sum(dim=1).tolist()):
        torch.testing.assert_close(found[row, :count], expected[row, :count], rtol=1e-4, atol=1e-5)
    # The null condition is <bos> alone, and <bos> is the same in every row.
    assert null_mask.sum(dim=1).tolist() == [1] * 6
    torch.testing.assert_close(null[:, 0], found[:, 0], rtol=1e-4, atol=1e-5)


def test_labels_say_what_stands_where() -> None:
    captions = [
        "a red circle left of a small blue square",
        "a small blue square right of a red circle",
        "a red circle right of a small blue square",
    ]
    one, same, mirrored = (
        dict(zip(ROLES, row[:-1].view(len(ROLES), 3).tolist(), strict=True))
        for row in scene_labels([parse_caption(caption) for caption in captions])
    )
    circle, square = [0, 0, 0], [1, 4, 1]
    assert one == {"first": circle, "second": square, "left": circle, "right": square} | nowhere("top", "bottom")
    assert same == one | {"first": square, "second": circle}
    assert mirrored == one | {"left": square, "right": circle}


def nowhere(*roles: str) -> dict[str, list[int]]:
    return {role: [NOT_ASKED] * 3 for role in roles}


def test_labels_count_equal_objects() -> None:
    captions = ["a red cross", "two red crosses", "three red crosses", "a red cross above a blue cross"]
    labels = scene_labels([parse_caption(caption) for caption in captions])
    assert labels[:, -1].tolist() == [0, 1, 2, 0]
    assert torch.equal(labels[0, :-1], labels[2, :-1])
    assert (labels < torch.tensor(CLASSES)).all()


def test_the_reading_loss_is_zero_for_features_that_hold_the_labels() -> None:
    labels = scene_labels(sample_scenes(6, seed=3))
    hot = [
        torch.nn.functional.one_hot(column.clamp(min=0), size) for column, size in zip(labels.T, CLASSES, strict=True)
    ]
    tokens = torch.cat(hot, dim=1).float()[:, None].expand(-1, 4, -1).clone()
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]] * 3)
    tokens[~mask] = torch.nan  # what lies behind a caption's end is not read
    reader = new_reader(sum(CLASSES))
    with torch.no_grad():
        reader.weight.copy_(50 * torch.eye(sum(CLASSES)))
        reader.bias.zero_()
        loss, right = reading_loss(reader, tokens, mask, labels)
        assert float(loss) < 1e-6
        assert float(right) == 1.0
        wrong = torch.where(labels == NOT_ASKED, labels, (labels + 1) % torch.tensor(CLASSES))
        loss, right = reading_loss(reader, tokens, mask, wrong)
    assert float(loss) > 1.0
    assert float(right) == 0.0


def test_words_of_captions_are_single_tokens() -> None:
    captions = sample_captions(400, seed=0)
    tokenizer = new_tokenizer(captions, 768)
    for caption in captions[:50]:
        assert len(tokenise(tokenizer, [caption]).ids[0]) <= len(caption.split())


def test_our_sampler_is_the_pipelines(trained: Path) -> None:
    pipeline = SanaPipeline.from_pretrained(trained)
    torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=0.1)
    noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = tokenise(pipeline.tokenizer, ["a red circle"])
    with torch.no_grad():
        condition, mask = encode_captions(pipeline.text_encoder, tokens.prefix, tokens.ids, tokens.mask)
    ours = sample(pipeline.transformer, noise, condition, mask, steps=4, guidance=3.0)
    theirs = pipeline(
        "a red circle",
        height=64,
        width=64,
        use_resolution_binning=False,
        num_inference_steps=4,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_an_untrained_network_predicts_zero_and_ignores_the_text() -> None:
    torch.manual_seed(0)
    network = new_transformer(TeacherConfig(width=32, layers=1, head_width=16, latent_channels=4, text_width=32))
    for block in network.transformer_blocks:
        assert not block.attn2.to_out[0].weight.any()
    assert not network(torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32), torch.tensor([500.0])).sample.any()


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert singular.min() > 0.5
        assert singular.max() < 1.3


def test_muon_takes_hidden_matrices_only() -> None:
    transformer = new_transformer(TeacherConfig(width=64, layers=1, text_width=64))
    encoder = new_text_encoder(300, 64, 1)
    matrices, others = split_parameters(transformer, encoder)
    assert len(matrices) + len(others) == len([*transformer.parameters(), *encoder.parameters()])
    held = {id(value) for value in matrices}
    assert id(transformer.proj_out.weight) not in held
    assert id(encoder.embed_tokens.weight) not in held
    assert id(transformer.transformer_blocks[0].ff.conv_depth.weight) not in held
    assert id(transformer.transformer_blocks[0].ff.conv_inverted.weight) in held


def test_muon_descends() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(32, 48))
    target = torch.randn(32, 48)
    optimizer = Muon([weight], lr=0.2)
    losses = []
    for _ in range(40):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_whitening_is_zero_for_white_latents_only() -> None:
    torch.manual_seed(0)
    white = torch.randn(64, 4, 16, 16)
    assert whitening_loss(white) < 1e-3
    assert whitening_loss(1.5 * white) > 0.1
    assert whitening_loss(white + 1.0) > 0.5


def test_the_learning_rate_rises_holds_and_falls_to_zero() -> None:
    config = TeacherConfig(flow_steps=1000, warmup_steps=100, decay_share=0.4)
    factors = [flow_schedule(config, step) for step in (0, 99, 500, 800, 1000)]
    assert factors == pytest.approx([0.01, 1.0, 1.0, 0.5, 0.0])


def test_the_defaults_are_the_committed_recipe() -> None:
    config = build(TeacherConfig, read_yaml(ROOT / "python" / "ddx" / "presets" / "sana-tiny.yaml"))
    assert config == TeacherConfig()


@pytest.mark.parametrize(
    "values",
    [{"autoencoder_widths": (16, 24, 64, 128)}, {"width": 200}, {"text_width": 100}, {"decay_share": 0.0}],
)
def test_impossible_recipes_are_refused_with_a_cure(values: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        build(TeacherConfig, values)
    assert caught.value.hint


def test_a_dry_run_prints_the_recipe_and_its_cost_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--set={name}={value}" for name, value in (("width", 32), ("layers", 1), ("flow_steps", 10))]
    command = ["train", *settings, "--out", str(tmp_path / "teacher"), "--dry-run"]
    assert run([*command, "--json"]) == 0
    ten = json.loads(capsys.readouterr().out)
    assert ten["config"]["width"] == 32
    assert ten["memory_bytes"] > ten["config"]["num_scenes"] * 64 * 64 * 3
    assert ten["seconds"] > 0
    assert run(command) == 0
    assert "width: 32\n" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_teacher_trains_on_a_gpu(tmp_path: Path) -> None:
    out = train_teacher(build(TeacherConfig, vars(TINY), {"device": "cuda"}), tmp_path / "teacher")
    assert all(value.isfinite().all() for value in weights(out).values())
