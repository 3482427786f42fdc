"""Networks of the metrics: torch-fidelity's Inception on clean-fid's resize, DINOv2, CLIP, LPIPS; random weights.

The photographs are scikit-image's.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import transformers

from ddx.errors import DdxError
from ddx.networks.inception import FILE_NAME, Inception, clean_resize, load_inception
from ddx.networks.lpips import BACKBONE, load_lpips
from ddx.networks.picture_networks import PillowInput, load_clip, load_dino
from picture_weights import make_dino, make_inception
from scorers import make_scorer

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="pip install 'ddx[eval]'")
CPU = torch.device("cpu")


def photographs() -> list[np.ndarray[Any, Any]]:
    found = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.rocket()[:, 100:420]]
    return [np.ascontiguousarray(picture) for picture in found]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inception(tmp_path_factory.mktemp("inception") / FILE_NAME)


@pytest.fixture(scope="module")
def inception(weights: Path) -> Inception:
    return load_inception(weights, CPU)


def test_features_and_logits_are_torch_fidelity_s(inception: Inception, weights: Path) -> None:
    peer = fidelity.FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], str(weights))
    square = np.random.RandomState(0).randint(0, 256, (2, 299, 299, 3), np.uint8)  # of a size that neither resizes
    found = inception(torch.stack([inception.prepare(picture) for picture in square]))
    features, logits = peer(torch.from_numpy(square).permute(0, 3, 1, 2))
    assert found["features"].shape == (2, 2048) and float(features.std()) > 0
    torch.testing.assert_close(found["features"], features)
    torch.testing.assert_close(found["logits"], logits)
    assert inception.identity.startswith("sha256:") and len(inception.identity) == 71


@pytest.mark.parametrize("number", range(3))
def test_the_resize_is_clean_fid_s(number: int) -> None:
    resize = pytest.importorskip("cleanfid.resize", reason="clean-fid is of the bench extra").build_resizer("clean")
    picture = photographs()[number]
    np.testing.assert_array_equal(clean_resize(picture), resize(picture))


def test_the_resize_antialiases_and_does_not_round() -> None:
    stripes = np.zeros((1200, 1200, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: grey, and no pattern
    small = clean_resize(stripes)
    assert small.shape == (299, 299, 3) and small.dtype == np.float32
    assert np.abs(small[5:-5, 5:-5] - 127.5).max() < 2.0
    photograph = clean_resize(photographs()[0])
    assert (photograph % 1 != 0).mean() > 0.5 and photograph.min() >= 0 and photograph.max() <= 255


def test_weights_may_be_safetensors(weights: Path, tmp_path: Path, inception: Inception) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "inception.safetensors"
    save_file(torch.load(weights, weights_only=True), path)
    other = load_inception(path, CPU)
    picture = inception.prepare(photographs()[1])[None]
    torch.testing.assert_close(other(picture), inception(picture), rtol=0, atol=0)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("a pickle ran",))


def test_files_that_are_not_these_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"pickle.pth": pickle.dumps(Harmful()), "text.pth": b"hello", "text.safetensors": b"hello"}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DdxError, match="cannot read") as raised:
            load_inception(tmp_path / name, CPU)
        assert "--inception" in str(raised.value.hint)
    assert "a pickle ran" not in capsys.readouterr().out
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DdxError, match="does not hold this Inception"):
        load_inception(tmp_path / "other.pth", CPU)
    with pytest.raises(DdxError, match="cannot read"):
        load_inception(tmp_path / "none.pth", CPU)


def test_missing_weights_have_one_line_to_download_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DdxError, match="Inception-v3 are not in") as raised:
        load_inception(None, CPU)
    hint = str(raised.value.hint)
    assert hint.startswith("curl -L --create-dirs -o ") and str(tmp_path) in hint and "\n" not in hint
    with pytest.raises(DdxError, match="no model at 'facebook/none'") as raised:
        load_dino("facebook/none", CPU)
    assert "hf download facebook/none" in str(raised.value.hint)
    with pytest.raises(DdxError, match="no scorer at") as raised:
        load_clip("openai/none", CPU, "--clip")
    assert "hf download openai/none" in str(raised.value.hint) and "--clip" in str(raised.value.hint)


@pytest.mark.parametrize("number", range(3))
def test_clip_s_input_is_its_processor_s(number: int) -> None:
    settings = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(**settings)
    picture = photographs()[number]
    expected = processor(picture, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(PillowInput(processor.to_dict(), "peer")(picture), expected, rtol=0, atol=2e-6)


def test_dino_gives_the_class_token_of_the_whole_picture(tmp_path: Path) -> None:
    model = transformers.Dinov2Model.from_pretrained(make_dino(tmp_path)).eval()
    dino = load_dino(str(tmp_path), CPU)
    prepared = torch.stack([dino.prepare(picture) for picture in photographs()])
    assert prepared.shape == (3, 3, 224, 224)
    torch.testing.assert_close(dino(prepared)["features"], model(prepared).pooler_output)
    processor = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)(
        size={"height": 224, "width": 224}, do_center_crop=False, resample=3
    )
    mean = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    expected = processor(photographs(), return_tensors="pt", **mean).pixel_values
    torch.testing.assert_close(prepared, expected, rtol=0, atol=2e-6)
    assert dino.identity != load_dino(str(changed(tmp_path)), CPU).identity


def changed(folder: Path) -> Path:
    """Return the folder with another weight in it."""
    model = transformers.Dinov2Model.from_pretrained(folder)
    model.layernorm.weight.data[0] += 1.0
    model.save_pretrained(folder)
    return folder


def test_clip_s_features_are_units_and_squeezed_where_cmmd_wants_it(tmp_path: Path) -> None:
    folder = make_scorer(tmp_path)
    wide = photographs()[1]
    cropped, squeezed = (load_clip(str(folder), CPU, "--clip", squeezed=choice) for choice in (False, True))
    inputs = [network.prepare(wide) for network in (cropped, squeezed)]
    assert inputs[0].shape == inputs[1].shape == (3, 32, 32) and not torch.equal(inputs[0], inputs[1])
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    expected = model.get_image_features(pixel_values=inputs[1][None])
    expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(squeezed(inputs[1][None])["features"], expected)


def test_lpips_is_a_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(DdxError, match="AlexNet's weights") as raised:
        load_lpips(CPU)
    assert str(raised.value.hint).startswith("curl -L --create-dirs -o ")
    (tmp_path / "hub/checkpoints").mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "hub/checkpoints" / BACKBONE)
    lpips = load_lpips(CPU)
    one, other = (np.stack([picture[:200, :200]]) for picture in photographs()[:2])
    assert (
        lpips(one, one)[0] == 0.0
        and lpips(one, other)[0] == pytest.approx(lpips(other, one)[0])
        and (lpips(one, other)[0] > 0.0)
    )
