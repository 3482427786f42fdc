"""Scores of pictures for captions, against transformers' own processors and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from ddx.errors import DdxError
from ddx.networks.picture_input import PictureInput
from ddx.networks.scorers import Scorer, load_scorer
from scorers import make_scorer

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "two small green squares", "a cat and a dog"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scorer(tmp_path_factory.mktemp("clip"))


def pictures(height: int, width: int, count: int = 3) -> np.ndarray[Any, Any]:
    """Smooth pictures with hard edges, uint8 `[B, H, W, 3]`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 16.0
    waves = [127.5 + 127.5 * np.sin(rng.normal() * x + rng.normal() * y + c) for c in range(3 * count)]
    found = np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1)
    found[:, : height // 3, : width // 2] = (250, 10, 90)
    return found.astype(np.uint8)


def as_pixels(uint8: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(uint8).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@pytest.mark.parametrize("shape", [(64, 64), (24, 24), (50, 81), (81, 50), (32, 32)])
@pytest.mark.parametrize(
    ("processor", "settings"),
    [
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": {"height": 33, "width": 40}}),
        ("SiglipImageProcessor", {"size": {"height": 40, "width": 32}, "resample": 2}),
        ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 40, "width": 40}, "do_normalize": False}),
    ],
)
def test_the_input_is_the_processor_s_to_the_rounding_of_its_resize(
    processor: str, settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    peer = getattr(transformers, processor)(**settings)
    uint8 = pictures(*shape)
    expected = peer(list(uint8), return_tensors="pt").pixel_values
    made = PictureInput(peer.to_dict(), "peer")
    found = made(as_pixels(uint8))
    assert found.shape == expected.shape
    # Pillow rounds to a level of 255 after the pass along each axis; bicubic weights add up to at most 1.3 in size
    levels = (found - expected).abs() * torch.tensor(made.std)[:, None, None] * 255.0
    assert levels.max() < (1.2 if made.mode else 1e-3)
    assert levels.mean() < 0.35


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_the_model_s_own_without_its_scale(kind: str, tmp_path: Path) -> None:
    folder = make_scorer(tmp_path, kind)
    scorer, uint8 = load_scorer(str(folder), CPU), pictures(32, 32)
    found = scorer.scores(as_pixels(uint8), scorer.text_features(CAPTIONS, CPU))

    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = tokenizer(CAPTIONS, return_tensors="pt", **padding)
    if kind == "siglip":
        del tokens["attention_mask"]
    with torch.no_grad():
        outputs = model(**tokens, pixel_values=processor(list(uint8), return_tensors="pt").pixel_values)
    cosines = outputs.image_embeds @ outputs.text_embeds.T
    torch.testing.assert_close(found, cosines.diagonal(), atol=1e-5, rtol=0.0)
    assert found.std() > 1e-3


def test_the_gradient_by_pixels_is_that_of_finite_differences(clip: Path) -> None:
    scorer = load_scorer(str(clip), CPU)
    scorer.model.double()
    text = scorer.text_features(CAPTIONS, CPU).double()
    generator = torch.Generator().manual_seed(0)
    pixels = 0.9 * torch.rand(3, 3, 44, 60, generator=generator, dtype=torch.float64) - 0.4
    along = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)

    def score(step: float) -> Tensor:
        return scorer.scores(pixels + step * along, text).sum()

    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(score(0.0), pixels)
    with torch.no_grad():
        expected = (score(1e-5) - score(-1e-5)) / 2e-5
    torch.testing.assert_close((gradient * along).sum(), expected, rtol=1e-5, atol=1e-9)
    assert all(p.grad is None and not p.requires_grad for p in scorer.model.parameters())


def test_a_caption_is_encoded_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_scorer(str(clip), CPU)
    first = scorer.text_features([*CAPTIONS, CAPTIONS[0]], CPU)
    assert torch.equal(first[0], first[3]) and first.norm(dim=-1).allclose(torch.ones(4))
    monkeypatch.setattr(Scorer, "_tokens", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(scorer.text_features(CAPTIONS[::-1], CPU), first[[2, 1, 0]])


def test_what_cannot_score_is_refused_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(DdxError, match="no scorer at 'no/such-model'") as missing:
        load_scorer("no/such-model", CPU)
    assert "hf download no/such-model" in str(missing.value.hint)
    folder = make_scorer(tmp_path / "vision", "vision")
    with pytest.raises(DdxError, match="a vit model has no towers for pictures and for text") as blind:
        load_scorer(str(folder), CPU)
    assert "PickScore" in str(blind.value.hint)
    with pytest.raises(DdxError, match="filter 1"):
        PictureInput({"size": {"shortest_edge": 8}, "resample": 1, "image_mean": [0] * 3, "image_std": [1] * 3}, "it")
    with pytest.raises(DdxError, match="'longest_edge': 8"):
        PictureInput({"size": {"longest_edge": 8}}, "it")
