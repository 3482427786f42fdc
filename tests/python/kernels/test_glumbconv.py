"""GLUMBConv over channels-last activations, against diffusers' own module."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from ddx.kernels import glumbconv
from ddx.kernels.glumbconv import glumbconv_dual_forward, glumbconv_forward
from operations import assert_rounded


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's rows and columns as few as interpreting them allows to be quick."""
    from ddx.kernels import glumbconv_mid

    for launch in (glumbconv_mid.FORWARD, glumbconv_mid.BACKWARD, glumbconv_mid.TRANSPOSED, glumbconv_mid.DUAL):
        monkeypatch.setattr(launch, "forced", {"BLOCK_C": 16, "ROWS": 2, "COLUMNS": 4})


def block(**options: Any) -> Any:
    """A GLUMBConv of 5 channels, 7 in the middle."""
    torch.manual_seed(0)
    made = GLUMBConv(5, 5, 1.5, **{"norm_type": None, "residual_connection": False, **options})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def images(size: tuple[int, int], *, channels_last: bool = True, seed: int = 1) -> Tensor:
    """`[1, 5, H, W]`, as the transformer hands it over (a view of tokens) or contiguous."""
    tokens = torch.randn(1, size[0] * size[1], 5, generator=torch.Generator().manual_seed(seed))
    viewed = tokens.unflatten(1, size).permute(0, 3, 1, 2)
    return viewed if channels_last else viewed.contiguous()


def all_of(function: Any, module: Any, x: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    y = function(module, x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    named = {"input": x, **dict(module.named_parameters())}
    found = torch.autograd.grad(y, list(named.values()), cotangent)
    return {"output": y.detach(), **{f"gradient of {name}": value for name, value in zip(named, found, strict=True)}}


@pytest.mark.parametrize(
    ("size", "options", "channels_last"),
    [
        ((2, 3), {}, True),
        ((2, 3), {"norm_type": "rms_norm"}, False),
        ((4, 1), {"residual_connection": True}, True),
        ((1, 3), {"norm_type": "rms_norm", "residual_connection": True}, True),
        ((1, 3), {}, False),
    ],
)
def test_it_is_diffusers_block_in_float64(size: tuple[int, int], options: dict[str, Any], channels_last: bool) -> None:
    module = block(**options).double()
    x = images(size, channels_last=channels_last).double()
    ours, stock = all_of(glumbconv_forward, module, x), all_of(GLUMBConv.forward, module, x)
    for name, value in stock.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("size", "dtype"), [((2, 3), torch.float32), ((4, 1), torch.float16), ((1, 3), torch.bfloat16)]
)
def test_output_and_all_gradients_against_float64(path: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    module, x = block(norm_type="rms_norm", residual_connection=True).to(dtype), images(size).to(dtype)
    ours = all_of(glumbconv_forward, module, x)
    assert {value.dtype for value in ours.values()} == {dtype}
    wide = copy.deepcopy(module).double()
    assert_rounded(ours, lambda: all_of(GLUMBConv.forward, wide, x.double()), inner=dtype)


@pytest.mark.parametrize("residual", [True, False])
def test_the_tangent_is_jvps(path: str, residual: bool) -> None:
    module = block(residual_connection=residual)
    x, dx = images((2, 3)), images((2, 3), seed=3)
    ours = glumbconv_dual_forward(module, x, dx)
    stock = torch.func.jvp(lambda x: GLUMBConv.forward(module, x), (x,), (dx,))
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    wide = copy.deepcopy(module).double()
    exact = torch.func.jvp(lambda x: GLUMBConv.forward(wide, x), (x.double(),), (dx.double(),))
    torch.testing.assert_close(glumbconv_dual_forward(wide, x.double(), dx.double()), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["norm", "hook"])
def test_the_dual_of_more_than_plain_layers_is_forward_mode(path: str, kind: str) -> None:
    module = block(norm_type="rms_norm" if kind == "norm" else None)
    if kind == "hook":
        module.conv_point.register_forward_hook(lambda module, inputs, output: 2 * output)
    x, dx = images((2, 3)), images((2, 3), seed=3)
    stock = torch.func.jvp(lambda x: GLUMBConv.forward(module, x), (x,), (dx,))
    torch.testing.assert_close(glumbconv_dual_forward(module, x, dx), stock, rtol=1e-4, atol=1e-5)


def test_what_one_pass_makes_again_is_not_kept(triton_path: None) -> None:
    module, x = block(), images((2, 3)).requires_grad_()
    kept: list[int] = []

    def pack(value: Tensor) -> Tensor:
        kept.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        y = glumbconv_forward(module, x)
    inner = x.shape[0] * x.shape[2] * x.shape[3] * module.conv_inverted.out_channels
    assert inner in kept and inner // 2 not in kept  # what goes into the middle, not what comes out of it
    y.sum().backward()
    assert module.conv_point.weight.grad is not None and x.grad is not None


def test_the_middle_runs_twice_and_not_thrice_within_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = block(), images((2, 3)).requires_grad_()
    runs: list[int] = []
    middle = glumbconv._middle_and_point

    def counted(module: Any, inner: Tensor) -> Tensor:
        runs.append(len(runs))
        return middle(module, inner)

    monkeypatch.setattr(glumbconv, "_middle_and_point", counted)
    expected = all_of(glumbconv_forward, module, x)
    assert len(runs) == 2
    found = all_of(
        lambda *given: torch.utils.checkpoint.checkpoint(glumbconv_forward, *given, use_reentrant=False), module, x
    )
    assert len(runs) == 4
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_autocast_chooses_the_dtype_and_leaves_the_parameters(path: str) -> None:
    module, x = block(), images((2, 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, stock = all_of(glumbconv_forward, module, x), all_of(GLUMBConv.forward, module, x)
    assert ours["output"].dtype == torch.bfloat16
    assert [value.dtype for value in ours.values()] == [value.dtype for value in stock.values()]
    cast = copy.deepcopy(module).bfloat16().double()  # what autocast multiplies with, but for the convolution's bias
    assert_rounded(ours, lambda: all_of(GLUMBConv.forward, cast, x.bfloat16().double()), inner=torch.bfloat16)
    assert {name: value.tolist() for name, value in module.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }


@pytest.mark.parametrize("layer", ["conv_inverted", "conv_depth", "conv_point"])
def test_a_layer_that_is_more_than_itself_is_called(layer: str) -> None:
    class Doubling(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inside(x)

    x, wrapped, hooked, replaced = images((2, 3)), block(), block(), block()
    setattr(wrapped, layer, Doubling(getattr(wrapped, layer)))
    getattr(hooked, layer).register_forward_hook(lambda module, inputs, output: 2 * output)
    plain = getattr(replaced, layer).forward
    getattr(replaced, layer).forward = lambda x: 2 * plain(x)
    for module in (wrapped, hooked, replaced):
        torch.testing.assert_close(glumbconv_forward(module, x), GLUMBConv.forward(module, x))


def test_it_reads_tokens_where_they_lie_and_returns_tokens() -> None:
    x = images((2, 3))
    y = glumbconv_forward(block(), x)
    assert y.shape == x.shape and y.stride() == x.stride()


def test_it_compiles_whole(path: str) -> None:
    module, x = block(), images((1, 3))
    torch._dynamo.reset()
    compiled = torch.compile(glumbconv_forward, backend="aot_eager", fullgraph=True)
    ours, plain = all_of(compiled, module, x), all_of(glumbconv_forward, module, x)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, msg=name)
