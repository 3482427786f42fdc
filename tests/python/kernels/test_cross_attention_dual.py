"""Cross-attention's dual: output and tangent, on both paths, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddx.kernels.cross_attention_dual import LARGEST_HEAD, cross_attention_dual, cross_attention_dual_reference
from operations import assert_forward_mode_is_right, assert_rounded, poisoned_outputs

MASKS = ["none", "keep", "bias", "minus 10000", "minus infinity"]
CASES = [  # batch, queries, keys, heads, width of a head; dtype; mask
    ((1, 1, 1, 1, 32), torch.float16, "none"),
    ((1, 1, 1, 1, 32), torch.float32, "minus 10000"),
    ((1, 77, 300, 1, 72), torch.bfloat16, "keep"),
    ((1, 37, 77, 1, 72), torch.float32, "bias"),
    ((2, 33, 77, 1, 64), torch.float16, "minus infinity"),
    ((2, 33, 40, 1, 64), torch.float32, "keep"),
    ((1, 65, 31, 2, 112), torch.bfloat16, "bias"),
    ((1, 33, 31, 1, 112), torch.float16, "minus 10000"),
    ((1, 70, 65, 1, 128), torch.bfloat16, "none"),
    ((1, 9, 40, 1, 128), torch.float32, "minus infinity"),
]


def make_mask(kind: str, batch: int, length: int, dtype: torch.dtype) -> Tensor | None:
    """Lengths that differ by row; every mask lets the first key be seen."""
    generator = torch.Generator().manual_seed(3)
    keep = torch.rand(batch, length, generator=generator) < 0.6
    keep[:, 0] = True
    if kind == "bias":
        return torch.randn(batch, length, generator=generator).to(dtype)
    if kind == "none":
        return None
    low = {"keep": 0.0, "minus 10000": -10000.0, "minus infinity": -math.inf}[kind]
    return keep if kind == "keep" else torch.where(keep, 0.0, low).to(dtype)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, mask: str = "none") -> dict[str, Tensor | None]:
    """q, dq, k, v as they come: keys and values are halves of one projection."""
    batch, queries, keys, heads, width = shape
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(size, generator=generator).to(dtype)  # noqa: E731
    text = draw(batch, keys, 2, heads, width)
    return {
        "q": draw(batch, queries, heads, width),
        "dq": draw(batch, queries, heads, width),
        "k": text[:, :, 0],
        "v": text[:, :, 1],
        "mask": make_mask(mask, batch, keys, dtype),
    }


def wide(values: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in values.items()
    }


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's own, in our layout, by the backend that has forward derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if mask is None else mask[:, None, None, :],
        ).transpose(1, 2)


def jvp_of_sdpa(q: Tensor, dq: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.func.jvp(lambda q: sdpa(q, k, v, mask), (q,), (dq,))


def assert_dual_rounded(given: dict[str, Tensor | None], dtype: torch.dtype) -> None:
    """Weights are rounded to the dtype of the values that they multiply."""
    o, do = cross_attention_dual(**given)
    assert o.dtype == do.dtype == dtype
    exact = lambda: dict(zip(("o", "do"), jvp_of_sdpa(**wide(given)), strict=True))  # noqa: E731
    assert_rounded({"o": o, "do": do}, exact, inner=dtype)


@pytest.mark.parametrize(("shape", "dtype", "mask"), CASES)
def test_output_and_tangent_against_float64(path: str, shape, dtype: torch.dtype, mask: str) -> None:
    given = inputs(shape, dtype, mask)
    assert_dual_rounded(given, dtype)


@pytest.mark.parametrize(
    ("width", "mask"), [(5, "none"), (32, "keep"), (72, "bias"), (130, "minus 10000"), (32, "minus infinity")]
)
def test_the_reference_is_the_forward_derivative_of_sdpa(width: int, mask: str) -> None:
    given = wide(inputs((2, 7, 9, 2, width), torch.float32, mask))
    torch.testing.assert_close(cross_attention_dual_reference(**given), jvp_of_sdpa(**given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["keep", "minus 10000", "minus infinity"])
def test_a_query_that_sees_no_key_gets_what_sdpa_gives(path: str, kind: str) -> None:
    given = inputs((2, 5, 40, 1, 32), torch.float32)
    hidden = torch.zeros(2, 40)
    hidden[0] = -10000.0 if kind == "minus 10000" else -math.inf
    hidden[1, :37] = -math.inf  # and one that sees none in the whole first block
    given["mask"] = hidden == 0 if kind == "keep" else hidden
    o, do = cross_attention_dual(**given)
    torch.testing.assert_close((o, do), jvp_of_sdpa(**given), rtol=2e-3, atol=2e-3)  # at -10000 a score has 3 decimals
    if kind != "minus 10000":
        assert not o[0].any() and not do[0].any()
    assert o[1].any() and do[1].any()


@pytest.mark.parametrize("width", [32, 72])
def test_what_all_keys_and_all_values_share_costs_no_precision(path: str, width: int) -> None:
    given = inputs((1, 9, 77, 1, width), torch.float16, "keep")
    generator = torch.Generator().manual_seed(4)
    given["k"] = given["k"] + 8 * torch.randn(width, generator=generator).half()
    given["v"] = given["v"] + 24
    given["q"] = given["q"] / 8
    assert_dual_rounded(given, torch.float16)


@pytest.mark.parametrize("width", [5, 24, 33, 80, 96, LARGEST_HEAD + 2])
def test_heads_of_any_size(path: str, width: int) -> None:
    given = inputs((2, 9, 35, 2, width), torch.float32, "keep")
    torch.testing.assert_close(cross_attention_dual(**given), jvp_of_sdpa(**given), rtol=1e-5, atol=1e-5)


def test_scores_of_hundreds_do_not_overflow(path: str) -> None:
    given = inputs((1, 9, 70, 1, 64), torch.float32, "bias")
    given["q"] = given["q"] * 300
    torch.testing.assert_close(cross_attention_dual(**given), jvp_of_sdpa(**given), rtol=1e-4, atol=1e-4)


def test_the_scale_is_a_choice(path: str) -> None:
    given = inputs((1, 9, 7, 2, 64), torch.float32)
    ours = cross_attention_dual(**given, scale=0.5)
    given = {**given, "q": given["q"] * 4, "dq": given["dq"] * 4}  # 1/8 by itself
    torch.testing.assert_close(ours, cross_attention_dual_reference(**given), rtol=1e-5, atol=1e-5)


def test_inputs_of_any_strides_are_read_in_place(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    packed = torch.randn(2, 2, 35, 3, 72 + 5, generator=generator)  # [B, H, N, 3, d + 5]
    q, dq, k = (packed[..., part, 3:75].transpose(1, 2) for part in range(3))
    v = torch.randn(2, 72, 35, 2, generator=generator).permute(0, 2, 3, 1)  # a last axis that is not of stride 1
    mask = (torch.arange(35 * 2) < 50).view(35, 2).T
    copied, contiguous = [], Tensor.contiguous
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "contiguous", lambda tensor: copied.append(tensor.shape) or contiguous(tensor))
        dual = cross_attention_dual(q, dq, k, v, mask)
    assert copied == [v.shape, mask.shape]
    torch.testing.assert_close(dual, cross_attention_dual_reference(q, dq, k, v, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 37, 35, 2, 72), torch.float16), ((1, 33, 9, 2, 112), torch.float32)])
def test_every_element_is_written_and_none_outside(
    triton_path: None, monkeypatch: pytest.MonkeyPatch, shape, dtype: torch.dtype
) -> None:
    with poisoned_outputs(monkeypatch):
        dual = cross_attention_dual(**inputs(shape, dtype))
    assert all(torch.isfinite(value).all() for value in dual)


@pytest.mark.parametrize("width", [72, 112])
def test_keys_and_columns_that_are_not_there_are_not_read(triton_path: None, width: int) -> None:
    text = torch.full((1, 40, 2, 1, 128), math.nan)
    text[:, :35, :, :, :width] = torch.randn(1, 35, 2, 1, width, generator=torch.Generator().manual_seed(5))
    k, v = text[:, :35, 0, :, :width], text[:, :35, 1, :, :width]
    q = torch.ones(1, 3, 1, 128)[..., :width]
    torch.testing.assert_close(
        cross_attention_dual(q, q, k, v), cross_attention_dual_reference(q, q, k, v), rtol=1e-5, atol=1e-5
    )


def test_repeated_runs_give_the_same_bits(triton_path: None) -> None:
    given = inputs((2, 33, 77, 1, 72), torch.float16, "keep")
    first, second = cross_attention_dual(**given), cross_attention_dual(**given)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_forward_mode_is_right(triton_path: None) -> None:
    given = inputs((1, 9, 11, 1, 32), torch.float32, "keep")
    rest = {name: value for name, value in given.items() if name != "q"}
    assert_forward_mode_is_right(lambda q: cross_attention_dual(q, **rest), given["q"])


def test_a_gradient_is_refused_not_answered_with_zero(triton_path: None) -> None:
    given = inputs((1, 9, 11, 1, 32), torch.float32)
    given["q"].requires_grad_()
    o, _ = cross_attention_dual(**given)
    with pytest.raises(RuntimeError, match="autograd"):
        o.sum().backward()


def test_it_compiles_whole(triton_path: None) -> None:
    given = inputs((1, 9, 11, 2, 72), torch.float32, "keep")
    torch._dynamo.reset()
    compiled = torch.compile(cross_attention_dual, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given), cross_attention_dual(**given))


def test_the_reference_passes_gradcheck() -> None:
    given = wide(inputs((1, 2, 3, 1, 2), torch.float32))
    leaves = [given[name].requires_grad_() for name in ("q", "dq", "k", "v")]
    assert torch.autograd.gradcheck(cross_attention_dual_reference, leaves)


def test_wrong_shapes_and_dtypes_are_named(triton_path: None) -> None:
    q, k = torch.randn(2, 3, 4, 32), torch.randn(2, 5, 4, 32)
    with pytest.raises(ValueError, match=r"q must be \[B, N, H, d\]"):
        cross_attention_dual(q[0], q[0], k, k)
    with pytest.raises(ValueError, match="q and dq must have one shape"):
        cross_attention_dual(q, q[:1], k, k)
    with pytest.raises(ValueError, match=r"k must be \[2, L, 4, 32\]"):
        cross_attention_dual(q, q, k[:1], k[:1])
    with pytest.raises(ValueError, match="k and v must have one shape"):
        cross_attention_dual(q, q, k, k[:, :4])
    with pytest.raises(ValueError, match="must have one dtype"):
        cross_attention_dual(q, q, k.half(), k)
    with pytest.raises(ValueError, match=r"mask must be \[2, 5\]"):
        cross_attention_dual(q, q, k, k, torch.ones(2, 1, 5))
    with pytest.raises(ValueError, match="booleans or floats"):
        cross_attention_dual(q, q, k, k, torch.ones(2, 5, dtype=torch.int64))
