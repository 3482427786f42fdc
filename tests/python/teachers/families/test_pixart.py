"""What PixArt has beside the other families: sizes at 1024 pixels, an older index, and SentencePiece's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, PixArtAlphaPipeline

from ddx.errors import DdxError
from ddx.teachers import components
from ddx.teachers.registry import load_teacher
from tiny import open_pipeline, pixart_sigma

SIZE = (64, 96)


def test_the_network_of_1024_pixels_knows_the_size_of_the_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = pixart_sigma.make_pixart(
        tmp_path / "alpha", PixArtAlphaPipeline, sample_size=128, use_additional_conditions=None
    )
    teacher = load_teacher(folder, resolution=64)
    network = teacher.network()
    assert network.adaln_single.emb.use_additional_conditions
    scheduler, _ = teacher.sampling_scheduler(2, teacher.latent_shape(SIZE))
    pipeline = open_pipeline(folder, scheduler=DDIMScheduler.from_config(scheduler.config))

    def drawn() -> torch.Tensor:
        (condition,) = teacher.encode_text(["a red cat"])
        noise = teacher.initial_noise([torch.Generator().manual_seed(5)], SIZE)
        return teacher.sample(condition, teacher.null_condition(), num_steps=2, guidance=3.0, noise=noise)

    found = pipeline(
        "a red cat",
        generator=torch.Generator().manual_seed(5),
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=2,
        guidance_scale=3.0,
        use_resolution_binning=False,
        clean_caption=False,
        output_type="latent",
    ).images
    before = drawn()
    torch.testing.assert_close(before, found, rtol=0, atol=3e-5 * float(found.abs().max()))
    network.adaln_single.emb.aspect_ratio_embedder.linear_2.bias.data.add_(1.0)
    assert (drawn() - before).abs().max() > 1e-4


def test_the_index_of_the_published_models_names_an_older_class(tmp_path: Path) -> None:
    folder = pixart_sigma.make(tmp_path / "sigma")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    teacher = load_teacher(folder)
    assert type(teacher.network()).__name__ == "PixArtTransformer2DModel"
    teacher.save_student(tmp_path / "student", teacher.new_student_network(), dtype=torch.bfloat16)
    assert type(open_pipeline(tmp_path / "student").transformer).__name__ == "PixArtTransformer2DModel"


def test_a_sentencepiece_model_is_copied_and_asks_for_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pixart_sigma.make(tmp_path / "sigma")
    teacher = load_teacher(folder)
    model = folder / "tokenizer" / "spiece.model"
    model.write_bytes(b"\xff\x00\xfe no text")
    teacher.save_student(tmp_path / "student", teacher.new_student_network())
    assert (tmp_path / "student" / "tokenizer" / "spiece.model").read_bytes() == model.read_bytes()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    monkeypatch.setattr(components, "_is_installed", lambda module: module != "sentencepiece")
    with pytest.raises(DdxError, match="reads with sentencepiece") as error:
        load_teacher(folder).tokenizer()
    assert error.value.hint == "pip install sentencepiece protobuf"
    model.unlink()
    with pytest.raises(DdxError, match="no vocabulary"):
        load_teacher(folder).tokenizer()


def test_what_is_too_long_is_cut_where_the_encoder_cuts_it(tmp_path: Path) -> None:
    teacher = load_teacher(pixart_sigma.make(tmp_path / "sigma"))
    words = " ".join(["the"] * 299)
    assert teacher.cut(words) is None
    cut = teacher.cut(f"{words} Red")
    assert cut is not None and (cut.given, cut.kept, cut.left_out) == (300, 299, "red")
    short, long = teacher.encode_text([words, f"{words} Red"])
    assert torch.equal(short.tokens, long.tokens) and short.tokens.shape[1] == 300
