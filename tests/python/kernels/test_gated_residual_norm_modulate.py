"""Gated residual, LayerNorm and modulation: outputs, gradients and tangents, on both paths, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ddx.kernels import gated_residual_norm_modulate as operations_file
from ddx.kernels.gated_residual_norm_modulate import (
    BACKWARD,
    gated_residual,
    gated_residual_norm_modulate,
    gated_residual_norm_modulate_reference,
    gated_residual_reference,
    norm_modulate_reference,
)
from ddx.kernels.gated_residual_norm_modulate_dual import (
    gated_residual_dual,
    gated_residual_dual_reference,
    gated_residual_norm_modulate_dual,
    gated_residual_norm_modulate_dual_reference,
    norm_modulate_dual,
    norm_modulate_dual_reference,
)
from operations import (
    assert_forward_mode_is_right,
    assert_rounded,
    gradients,
    poisoned_outputs,
)

SIZES = [
    ((1, 1, 1), torch.float16),
    ((2, 3, 77), torch.float32),
    ((1, 5, 160), torch.bfloat16),
    ((2, 2, 64), torch.float16),
]


class Form(NamedTuple):
    """One of the operations: its inputs, and what computes it."""

    names: tuple[str, ...]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    dual: Callable[..., Any]
    dual_reference: Callable[..., Any]


def without(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """The function with these inputs None."""
    return lambda **given: function(**given, **dict.fromkeys(names))


def norm_modulate(x: Tensor, scale: Tensor, shift: Tensor, **options: Any) -> Tensor:
    """What a block begins with: there is no operation that leaves the residual out."""
    return gated_residual_norm_modulate(x, None, None, scale, shift, **options)[1]


FUSED = (
    gated_residual_norm_modulate,
    gated_residual_norm_modulate_reference,
    gated_residual_norm_modulate_dual,
    gated_residual_norm_modulate_dual_reference,
)
FORMS = {
    "norm": Form(
        ("x", "scale", "shift"),
        norm_modulate,
        norm_modulate_reference,
        norm_modulate_dual,
        norm_modulate_dual_reference,
    ),
    "gated residual": Form(
        ("residual", "branch", "gate"),
        gated_residual,
        gated_residual_reference,
        gated_residual_dual,
        gated_residual_dual_reference,
    ),
    "residual": Form(
        ("residual", "branch"),
        gated_residual,
        gated_residual_reference,
        gated_residual_dual,
        gated_residual_dual_reference,
    ),
    "gated residual, norm": Form(("residual", "branch", "gate", "scale", "shift"), *FUSED),
    "residual, norm": Form(("residual", "branch", "scale", "shift"), *(without(each, "gate") for each in FUSED)),
}
BESIDE = (
    without(gated_residual_norm_modulate, "branch", "gate"),
    without(gated_residual_norm_modulate_reference, "branch", "gate"),
)

every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
every_pair = pytest.mark.parametrize(  # each form at two of the sizes, each size with two forms or more
    ("form", "shape", "dtype"),
    [
        pytest.param(form, *SIZES[number % 4], id=f"{name}, {SIZES[number % 4][1]}".replace("torch.", ""))
        for first, (name, form) in enumerate(FORMS.items())
        for number in (first, first + 2)
    ],
)


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Run several rows in a program, as real sizes do."""
    with ExitStack() as stack:
        for launch in BACKWARD.values():
            stack.enter_context(launch.force({**launch.default, "PROGRAMS": 4}))
        yield


def inputs(names: tuple[str, ...], shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Activations, and modulations cut from one tensor."""
    batch, _, width = shape
    generator = torch.Generator().manual_seed(seed)
    cut = torch.randn(batch, len(names), width, generator=generator).to(dtype).chunk(len(names), dim=1)
    return {
        name: part if name in ("gate", "scale", "shift") else torch.randn(shape, generator=generator).to(dtype)
        for name, part in zip(names, cut, strict=True)
    }


def tangents(given: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {"d" + name: torch.randn(value.shape, generator=generator).to(value.dtype) for name, value in given.items()}


def wide(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in values.items()}


def assert_close_to_float64(ours: Callable[..., Any], reference: Callable[..., Any], given: dict[str, Tensor]) -> None:
    # A norm is that of the sum as it was rounded; plain torch rounds between its operations.
    narrowest = max((value.dtype for value in given.values()), key=lambda dtype: torch.finfo(dtype).eps)
    assert_rounded(gradients(ours, given), lambda: gradients(reference, wide(given)), inner=narrowest)


@every_pair
def test_output_and_gradients_against_float64(path: str, form: Form, shape, dtype: torch.dtype) -> None:
    assert_close_to_float64(form.ours, form.reference, inputs(form.names, shape, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_residual_is_handed_on_beside_its_norm(path: str, dtype: torch.dtype) -> None:
    given = inputs(("residual", "scale", "shift"), (2, 3, 77), dtype)
    assert_close_to_float64(*BESIDE, given)
    r, _ = BESIDE[0](**given)
    assert r.data_ptr() == given["residual"].data_ptr()


def test_many_tokens(triton_path: None) -> None:
    form = FORMS["gated residual, norm"]
    assert_close_to_float64(form.ours, form.reference, inputs(form.names, (1, 77, 20), torch.float32))


@every_pair
def test_tangent_against_float64(path: str, form: Form, shape, dtype: torch.dtype) -> None:
    given = inputs(form.names, shape, dtype)
    given |= tangents(given)
    found = dict(enumerate(form.dual(**given)))
    assert {value.dtype for value in found.values()} == {dtype}
    assert_rounded(found, lambda: dict(enumerate(form.dual_reference(**wide(given)))), inner=dtype)


def test_a_tangent_that_is_not_given_is_zero(path: str) -> None:
    form = FORMS["gated residual, norm"]
    given = inputs(form.names, (1, 2, 33), torch.float32)
    every = tangents(given)
    for absent in every:
        some = {name: value for name, value in every.items() if name != absent}
        zero = {**some, absent: torch.zeros_like(every[absent])}
        torch.testing.assert_close(form.dual(**given, **some), form.dual(**given, **zero))
    torch.testing.assert_close(form.dual(**given)[-1], torch.zeros(1, 2, 33))


@every_form
def test_the_dual_reference_is_the_forward_derivative(form: Form) -> None:
    given = wide(inputs(form.names, (2, 5, 33), torch.float32))
    directions = tangents(given)
    outputs, derivatives = torch.func.jvp(
        lambda *values: form.reference(**dict(zip(given, values, strict=True))),
        tuple(given.values()),
        tuple(directions.values()),
    )
    expected = (*outputs, *derivatives) if isinstance(outputs, tuple) else (outputs, derivatives)
    found = form.dual_reference(**given, **directions)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtypes", "gated"),
    [
        ({"branch": torch.bfloat16}, True),  # the residual stream under autocast
        ({"residual": torch.bfloat16, "branch": torch.bfloat16}, True),  # its first block
        ({"residual": torch.bfloat16, "branch": torch.bfloat16}, False),
        ({"gate": torch.bfloat16, "scale": torch.bfloat16, "shift": torch.bfloat16}, True),
    ],
)
def test_mixed_dtypes_promote_as_in_plain_torch(triton_path: None, dtypes: dict, gated: bool) -> None:
    form = FORMS["gated residual, norm" if gated else "residual, norm"]
    given = {
        name: value.to(dtypes.get(name, torch.float32))
        for name, value in inputs(form.names, (2, 3, 96), torch.float32).items()
    }
    expected_r = torch.float32 if gated or "residual" not in dtypes else torch.bfloat16

    def ours(**given: Tensor) -> tuple[Tensor, Tensor]:
        return form.ours(**given, norm_dtype=torch.bfloat16)

    def reference(**given: Tensor) -> tuple[Tensor, Tensor]:
        return form.reference(
            **given, norm_dtype=torch.float64 if given["scale"].dtype == torch.float64 else torch.bfloat16
        )

    assert [output.dtype for output in ours(**given)] == [expected_r, torch.bfloat16]
    assert [output.dtype for output in form.ours(**given)] == [expected_r, expected_r]
    assert_close_to_float64(ours, reference, given)
    r, y, dr, dy = form.dual(**given, **tangents(given), norm_dtype=torch.bfloat16)
    assert [output.dtype for output in (r, y, dr, dy)] == [expected_r, torch.bfloat16] * 2
    for mine, theirs in zip((r, y), ours(**given), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("offset", "size"), [(1e4, 1.0), (0.0, 1e-4), (0.0, 1e4)])
def test_rows_far_from_zero_tiny_or_huge(path: str, offset: float, size: float) -> None:
    form = FORMS["norm"]
    given = inputs(form.names, (1, 3, 96), torch.float32)
    given["x"] = offset + size * given["x"]
    assert_close_to_float64(form.ours, form.reference, given)


def test_the_norm_is_that_of_the_sum_as_it_was_rounded(path: str) -> None:
    form = FORMS["gated residual, norm"]
    given = inputs(form.names, (1, 3, 96), torch.float16)
    given["residual"] = 100 + 0.1 * given["residual"]  # in steps of 1 / 16
    given["branch"] = 0.1 * given["branch"]
    leaves = {name: value.requires_grad_() for name, value in given.items()}
    r, y = form.ours(**leaves)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).half()
    (found,) = torch.autograd.grad(y, leaves["residual"], cotangent)
    exact = r.detach().double().requires_grad_()
    expected_y = norm_modulate_reference(exact, given["scale"].double(), given["shift"].double())
    (expected,) = torch.autograd.grad(expected_y, exact, cotangent.double())
    for mine, true in ((y, expected_y), (found, expected)):
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=0.02 * true.abs().max().item())


@every_form
def test_slices_are_read_in_place(triton_path: None, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.randn(2, 3, 4, 96, generator=torch.Generator().manual_seed(2))
    given = inputs(form.names, (2, 3, 96), torch.float32)
    for place, name in enumerate(given):
        if given[name].shape[1] == 3:
            given[name] = packed[:, :, place]
        else:
            assert given[name].stride(0) == len(form.names) * 96
    cotangents = tuple(torch.randn(3, 2, 96).transpose(0, 1) for _ in range(2))
    expected = [value.clone() for value in tuple_of(form.reference(**given))]
    expected_dual = [value.clone() for value in form.dual_reference(**given, dx=given["x"])] if "x" in given else None
    leaves = {name: value.requires_grad_() for name, value in given.items()}

    def no_copy(self: Tensor, **_: Any) -> Tensor:
        raise AssertionError("copied")

    monkeypatch.setattr(Tensor, "contiguous", no_copy)
    with poisoned_outputs(monkeypatch):
        outputs = tuple_of(form.ours(**leaves))
        torch.autograd.grad(outputs, list(leaves.values()), cotangents[: len(outputs)])
        dual = form.dual(**given, dx=given["x"]) if "x" in given else None
    torch.testing.assert_close(outputs, tuple(expected))
    if expected_dual is not None:
        torch.testing.assert_close(dual, tuple(expected_dual))


def tuple_of(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_a_strided_last_axis_and_vectors_of_two_axes(path: str) -> None:
    form = FORMS["gated residual, norm"]
    given = inputs(form.names, (2, 6, 96), torch.float32)
    expected = form.reference(**given)
    for name, value in given.items():
        given[name] = value[:, 0] if value.shape[1] == 1 else value.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(form.ours(**given), expected)
    assert_close_to_float64(form.ours, form.reference, given)
    given |= tangents(given)
    torch.testing.assert_close(form.dual(**given), form.dual_reference(**given))


@every_form
def test_every_element_is_written_and_none_outside(
    triton_path: None, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(form.names, (2, 3, 77), torch.float32)
    with poisoned_outputs(monkeypatch):
        found = gradients(form.ours, given)
        found |= {f"dual {number}": value for number, value in enumerate(form.dual(**given, **tangents(given)))}
    assert all(torch.isfinite(value).all() for value in found.values())


@every_form
def test_repeated_runs_give_the_same_bits(triton_path: None, form: Form) -> None:
    given = inputs(form.names, (2, 5, 40), torch.float16)
    first, second = gradients(form.ours, given), gradients(form.ours, given)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone_may_be_used(path: str, used: int) -> None:
    form = FORMS["gated residual, norm"]
    given = inputs(form.names, (2, 3, 77), torch.float32)
    if used == 0:
        del given["scale"], given["shift"]
        scale = torch.zeros(2, 77)
    for ours, reference in ((form.ours, form.reference), BESIDE):
        names = [name for name in given if name in ("residual", "scale", "shift") or ours is form.ours]
        extra = {"scale": scale, "shift": scale} if used == 0 else {}
        assert_close_to_float64(
            lambda ours=ours, extra=extra, **values: ours(**values, **extra)[used],
            lambda reference=reference, extra=extra, **values: reference(**values, **extra)[used],
            {name: given[name] for name in names},
        )


def saved_bytes(function: Callable[[], Any]) -> int:
    saved: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        saved[value.data_ptr()] = value.numel() * value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        function()
    return sum(saved.values())


def test_what_is_kept_for_the_backward_pass(triton_path: None) -> None:
    batch, tokens, width = 2, 3, 96
    activation, vector, statistics = 4 * batch * tokens * width, 4 * batch * width, 8 * batch * tokens
    form = FORMS["gated residual, norm"]
    given = {
        name: value.requires_grad_()
        for name, value in inputs(form.names, (batch, tokens, width), torch.float32).items()
    }
    x, branch, gate, scale, shift = given.values()
    assert saved_bytes(lambda: norm_modulate(x, scale, shift)) == activation + statistics + vector
    assert saved_bytes(lambda: gated_residual(x, branch, gate)) == activation + vector  # the branch
    assert saved_bytes(lambda: gated_residual(x, branch, gate.detach())) == vector
    assert saved_bytes(lambda: gated_residual(x, branch)) == 0
    fused = activation + statistics + vector  # r, which whatever follows keeps too
    assert saved_bytes(lambda: gated_residual_norm_modulate(x, branch, None, scale, shift)) == fused
    assert saved_bytes(lambda: form.ours(**given)) == fused + activation + vector
    assert saved_bytes(lambda: form.ours(**{**given, "gate": gate.detach()})) == fused + vector


@pytest.fixture
def kernel_gradients(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the kernel of the backward pass gave, a call after the other."""
    given: list[tuple[Tensor, Tensor, Tensor]] = []
    real = operations_file.gradients

    def spy(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        given.append(real(*arguments))
        return given[-1]

    monkeypatch.setattr(operations_file, "gradients", spy)
    return given


def test_frozen_modulations_get_no_gradient_and_cost_none(triton_path: None, kernel_gradients: list) -> None:
    form = FORMS["gated residual, norm"]
    given = inputs(form.names, (1, 2, 33), torch.float32)
    for trained in ((), ("gate",), ("scale",), ("gate", "shift")):
        leaves = {name: value.detach().clone() for name, value in given.items()}
        for name in ("residual", "branch", *trained):
            leaves[name].requires_grad_()
        r, y = form.ours(**leaves)
        (r.sum() + y.square().sum()).backward()
        assert {name for name, value in leaves.items() if value.grad is not None} == {"residual", "branch", *trained}
    assert [sums.shape[1] for _, _, sums in kernel_gradients] == [0, 1, 2, 3]


def test_the_gradient_of_a_branch_is_written_only_where_it_differs(triton_path: None, kernel_gradients: list) -> None:
    form = FORMS["residual, norm"]
    given = inputs(form.names, (1, 2, 33), torch.float32)
    gradients(form.ours, given)
    gradients(form.ours, {**given, "branch": given["branch"].half()})
    gradients(BESIDE[0], {name: given[name] for name in ("residual", "scale", "shift")})
    assert [(branch.numel(), branch.dtype) for _, branch, _ in kernel_gradients] == [
        (0, torch.float32),
        (66, torch.float16),
        (0, torch.float32),
    ]


@pytest.mark.parametrize("form", ["gated residual", "gated residual, norm"])
def test_forward_mode_is_right(triton_path: None, form: str) -> None:
    names, ours, *_ = FORMS[form]
    first, *others = names
    given = inputs(names, (1, 2, 33), torch.float32)
    constant = {name: given[name] for name in others}
    assert_forward_mode_is_right(lambda value: ours(**{first: value}, **constant), given[first])


@pytest.mark.parametrize("beside", [False, True])
def test_a_second_derivative_is_refused_not_answered_with_zero(triton_path: None, beside: bool) -> None:
    form = FORMS["gated residual, norm"]
    given = inputs(form.names if not beside else ("residual", "scale", "shift"), (2, 3, 33), torch.float32)
    residual = given["residual"].requires_grad_()
    r, y = (BESIDE[0] if beside else form.ours)(**given)
    (gradient,) = torch.autograd.grad(r.square().sum() + y.square().sum(), residual, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("form", ["norm", "gated residual, norm", "beside"])
def test_it_compiles_whole(triton_path: None, form: str) -> None:
    names, function = (("residual", "scale", "shift"), BESIDE[0]) if form == "beside" else FORMS[form][:2]
    given = inputs(names, (1, 2, 33), torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    ours, plain = gradients(compiled, given), gradients(function, given)
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])


@every_form
def test_the_reference_passes_gradcheck(form: Form) -> None:
    given = {name: value.requires_grad_() for name, value in wide(inputs(form.names, (2, 3, 5), torch.float32)).items()}
    assert torch.autograd.gradcheck(
        lambda *values: form.reference(**dict(zip(given, values, strict=True))), tuple(given.values())
    )


def test_wrong_shapes_are_named() -> None:
    x, vector = torch.randn(2, 3, 4), torch.randn(2, 4)
    with pytest.raises(ValueError, match="not empty"):
        norm_modulate(torch.randn(0, 3, 4), vector, vector)
    with pytest.raises(ValueError, match=r"must be \[B, N, D\]"):
        norm_modulate(torch.randn(3, 4), vector, vector)
    with pytest.raises(ValueError, match=r"scale must be \[2, 4\] or \[2, 1, 4\]"):
        norm_modulate(x, torch.randn(4), vector)
    with pytest.raises(ValueError, match=r"gate must be .* got \(2, 3, 4\)"):
        gated_residual(x, x, x)
    with pytest.raises(ValueError, match="like the residual"):
        gated_residual(x, x[:, :2])
    with pytest.raises(ValueError, match="a gate needs a branch"):
        gated_residual_norm_modulate(x, None, vector, vector, vector)
    with pytest.raises(ValueError, match="the tangent of gate must be None"):
        gated_residual_dual(x, x, None, x, x, vector)
    with pytest.raises(ValueError, match="the tangent of shift"):
        norm_modulate_dual(x, vector, vector, x, vector, vector[:, None])
