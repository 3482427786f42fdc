"""Maps that wait on the host: each operation in parts gives what it gives in one, and takes no more than its limit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor
from torch.nn import functional

from ddx.offload.maps import maps_on_host
from pipelines import kl_autoencoder

CPU = torch.device("cpu")
LIMIT = 4096  # bytes; the maps below are 16 times as large


def normed(x: Tensor) -> Tensor:
    """Norms over channels as the deep-compression autoencoder has them: on a permuted map, in float32."""
    wide = x.movedim(1, -1)
    return (wide * torch.rsqrt(wide.float().pow(2).mean(-1, keepdim=True) + 1e-5)).movedim(-1, 1)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "group norm": lambda x: functional.group_norm(x, 4, torch.arange(16.0), torch.ones(16)),
    "norm over channels": normed,
    "silu": functional.silu,
    "silu in place": lambda x: functional.silu(x * 2, inplace=True),
    "a residual": lambda x: x + x / 3.0,
    "a row for all": lambda x: x * torch.linspace(0, 1, 32),
    "another dtype": lambda x: x.to(torch.bfloat16),
    "nearest": lambda x: functional.interpolate(x, scale_factor=2.0, mode="nearest"),
    "unit length": lambda x: functional.normalize(x, dim=1),
    "a sum of all": lambda x: x / x.abs().sum(),
    "a mean that keeps no dimension": lambda x: x.mean(dim=1),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x.repeat_interleave(2, dim=1), 2),
    "cat": lambda x: torch.cat([x, x[:, :3]], dim=1),
    "pad": lambda x: functional.pad(x, (1, 2, 3, 0)),
    "softmax": lambda x: x.flatten(2).softmax(-1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_parts_give_what_the_whole_gives(name: str) -> None:
    x = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = OPERATIONS[name](x.clone())
        with maps_on_host(CPU, LIMIT):
            parts = OPERATIONS[name](x.clone())
    assert parts.dtype == whole.dtype
    if name in (
        "norm over channels",
        "unit length",
        "a mean that keeps no dimension",
    ):  # a sum over several strides; its order may follow the shape
        assert torch.allclose(parts, whole, rtol=1e-6, atol=0.0)
    else:
        assert torch.equal(parts, whole)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 16])
def test_a_convolution_in_rows_sees_the_rows_beside_them(kernel: int, groups: int) -> None:
    """Sums of whole numbers are exact in any order."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 32, kernel, padding=kernel // 2, groups=groups)
    for value in layer.parameters():
        value.data = torch.randint(-3, 4, value.shape).float()
    x = torch.randint(-3, 4, (1, 16, 30, 32)).float()
    with torch.no_grad():
        whole = layer(x)
        with maps_on_host(CPU, LIMIT):
            parts = layer(x)
    assert torch.equal(parts, whole)


def test_only_the_last_bits_of_a_decoded_picture_can_change() -> None:
    torch.manual_seed(0)
    deep = AutoencoderDC(
        in_channels=3,
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
    )
    plain: AutoencoderKL = kl_autoencoder(4)
    for vae, channels in ((deep, 8), (plain, 4)):
        latents = torch.randn(1, channels, 16, 16)
        with torch.no_grad():
            whole = vae.eval().decode(latents, return_dict=False)[0]
            with maps_on_host(CPU, LIMIT):
                parts = vae.decode(latents, return_dict=False)[0]
        assert torch.allclose(parts, whole, rtol=0.0, atol=2e-5 * float(whole.abs().max()))


def test_an_encoder_in_rows_gives_the_same_latents_but_for_last_bits() -> None:
    """With convolutions that halve a map."""
    torch.manual_seed(0)
    plain: AutoencoderKL = kl_autoencoder(4)
    layer = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
    for value in layer.parameters():
        value.data = torch.randint(-3, 4, value.shape).float()
    pixels = torch.randint(-3, 4, (1, 3, 64, 64)).float()
    with torch.no_grad():
        whole, latents = layer(pixels), plain.eval().encode(pixels, return_dict=False)[0].mode()
        with maps_on_host(CPU, LIMIT):
            parts, found = layer(pixels), plain.encode(pixels, return_dict=False)[0].mode()
    assert torch.equal(parts, whole)
    assert torch.allclose(found, latents, rtol=0.0, atol=2e-5 * float(latents.abs().max()))
