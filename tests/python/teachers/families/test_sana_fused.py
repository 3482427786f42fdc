"""Our kernels inside diffusers' SANA transformer, and its dual-number forward, against the stock model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddx.kernels import cross_attention, dispatch
from ddx.networks.lora import shared_copy
from ddx.teachers.families.sana_dual import dual_forward
from ddx.teachers.families.sana_fused import alone, fuse, fuse_if_faster, is_fused, kept_text, text_of, unfuse
from operations import assert_rounded

# The interpreter takes ten seconds for a layer, forward and back; that layers do not meet is shown on the other path.
LAYERS = {"triton": 1, "torch": 2}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "qk-norm": {"qk_norm": "rms_norm_across_heads"},
    "guidance": {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
    "patches": {"patch_size": 2, "attention_bias": True, "sample_size": 8, "interpolation_scale": 1},
}


def make(kind: str, dtype: torch.dtype = torch.float32, *, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    options = {"sample_size": 4, "attention_bias": False, **KINDS[kind]}
    network = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=layers,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=20,
        **options,
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:  # so that a forgotten weight is seen
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network.to(dtype)


def arguments(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = (8, 6) if kind == "patches" else (4, 3)
    mask = torch.ones(2, 7)
    mask[1, 3:] = 0
    given = {
        "hidden_states": torch.randn(2, 4, *side, generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, 20, generator=generator),
        "timestep": torch.tensor([300.0, 812.5]),
        "encoder_attention_mask": mask,
    }
    if kind == "guidance":
        given["guidance"] = torch.tensor([450.0, 200.0])
    return {name: value.to(dtype) for name, value in given.items()}


def run(network: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output, and the gradients of the inputs and of every parameter."""
    leaves = {name: value.clone().requires_grad_(name != "encoder_attention_mask") for name, value in given.items()}
    output = network(**leaves, return_dict=False)[0]
    network.zero_grad()
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    output.backward(cotangent)
    found = {"output": output.detach()}
    found |= {f"gradient of {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    found |= {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return found


@pytest.fixture
def wide_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' linear attention casts to float32 with `.float()`; here that is float64, so nothing is rounded."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def close_to(kind: str) -> dict[str, float]:
    """Equal but for rounding in float64; the variance in diffusers' RMSNorm is float32 whatever it is given."""
    return {"rtol": 1e-9, "atol": 1e-9} if "qk_norm" not in KINDS[kind] else {"rtol": 2e-6, "atol": 2e-6}


@pytest.mark.parametrize("kind", KINDS)
def test_fused_in_float64_is_the_stock_model(wide_attention: None, kind: str) -> None:
    network, given = make(kind, torch.float64), arguments(kind, torch.float64)
    stock = run(network, given)
    fuse(network)
    ours = run(network, given)
    assert ours.keys() == stock.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, stock[name], **close_to(kind), msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("kind", ["guidance", "patches"])  # which between them have everything
def test_the_kernels_do_no_more_than_round(triton_path: None, kind: str) -> None:
    network, exact = make(kind, layers=1), make(kind, torch.float64, layers=1)
    fuse(network)
    assert_rounded(run(network, arguments(kind)), lambda: run(exact, arguments(kind, torch.float64)))


def test_out_again_is_bit_for_bit_the_stock_model_and_states_never_change() -> None:
    network, given = make("qk-norm"), arguments("qk-norm")
    stock, keys = run(network, given), list(network.state_dict())
    fuse(network)
    fuse(network)
    assert is_fused(network) and list(network.state_dict()) == keys
    assert list(copy.deepcopy(network).state_dict()) == keys
    unfuse(network)
    unfuse(network)
    assert not is_fused(network) and list(network.state_dict()) == keys
    again = run(network, given)
    assert all(torch.equal(again[name], stock[name]) for name in stock)


def test_a_copy_of_a_fused_network_is_fused_and_its_own(path: str) -> None:
    network, given = make("plain", layers=LAYERS[path]), arguments("plain")
    fuse(network)
    twin = copy.deepcopy(network)
    before = network(**given, return_dict=False)[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert is_fused(twin)
    torch.testing.assert_close(twin(**given, return_dict=False)[0], before)


def test_gradient_checkpointing_changes_nothing() -> None:
    network, given = make("qk-norm"), arguments("qk-norm")
    fuse(network)
    plain = run(network.train(), given)
    network.enable_gradient_checkpointing()
    checkpointed = run(network, given)
    assert all(torch.equal(checkpointed[name], plain[name]) for name in plain)


def test_compilation_around_it_changes_nothing(path: str) -> None:
    network, given = make("plain", layers=LAYERS[path]), arguments("plain")
    fuse(network)
    plain = run(network, given)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager")
    ours = run(compiled, given)
    for name, value in plain.items():
        mine = ours[name] if name in ours else ours["_orig_mod." + name]
        torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


def test_weights_that_change_are_seen(path: str) -> None:
    network, given = make("qk-norm", layers=LAYERS[path]).requires_grad_(False), arguments("qk-norm")
    fuse(network)
    with torch.no_grad():
        network(**given)  # frozen weights may be joined and kept
        for parameter in network.parameters():
            parameter.mul_(1.1)
        ours = network(**given, return_dict=False)[0]
        unfuse(network)
        torch.testing.assert_close(ours, network(**given, return_dict=False)[0], rtol=1e-4, atol=1e-4)


def test_autocast_is_respected() -> None:
    network, given = make("qk-norm"), arguments("qk-norm")
    exact = copy.deepcopy(network).bfloat16().double()  # the weights that products are made with
    fuse(network)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours = network(**given, return_dict=False)[0]
        assert ours.dtype == torch.bfloat16
    given = arguments("qk-norm", torch.float64)
    assert_rounded(
        {"output": ours}, lambda: {"output": exact(**given, return_dict=False)[0].detach()}, inner=torch.bfloat16
    )


def tangents(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    given = arguments(kind, dtype)
    return torch.randn(given["hidden_states"].shape, generator=generator).to(dtype), torch.tensor([90.0, -40.0]).to(
        dtype
    )


def forward_mode(network: nn.Module, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    given = arguments(kind, dtype)
    x, timestep = given.pop("hidden_states"), given.pop("timestep")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        found = torch.func.jvp(
            lambda x, timestep: network(x, timestep=timestep, **given, return_dict=False)[0],
            (x, timestep),
            tangents(kind, dtype),
        )
    return found[0], found[1]


def dual(network: nn.Module, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    given = arguments(kind, dtype)
    x, timestep = given.pop("hidden_states"), given.pop("timestep")
    dx, dtimestep = tangents(kind, dtype)
    return dual_forward(network, x, dx, timestep, dtimestep, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dual_forward_is_forward_mode_of_the_stock_model_in_float64(wide_attention: None, kind: str) -> None:
    network = make(kind, torch.float64)
    output, tangent = dual(network, kind, torch.float64)
    stock_output, stock_tangent = forward_mode(network, kind, torch.float64)
    torch.testing.assert_close(output, stock_output, **close_to(kind))
    torch.testing.assert_close(tangent, stock_tangent, **close_to(kind))
    assert tangent.abs().max() > 0.01


@pytest.mark.parametrize("kind", ["guidance", "patches"])
def test_the_dual_kernels_do_no_more_than_round(triton_path: None, kind: str) -> None:
    ours, exact = dual(make(kind, layers=1), kind, torch.float32), make(kind, torch.float64, layers=1)
    names = ("output", "tangent")
    assert_rounded(
        dict(zip(names, ours, strict=True)),
        lambda: dict(zip(names, forward_mode(exact, kind, torch.float64), strict=True)),
    )


def test_forward_mode_through_a_fused_model_is_right(triton_path: None) -> None:
    network = make("qk-norm", layers=1)
    stock = forward_mode(network, "qk-norm", torch.float32)
    fuse(network)
    torch._dynamo.reset()
    for ask in (forward_mode, torch.compile(forward_mode, backend="aot_eager")):
        torch.testing.assert_close(ask(network, "qk-norm", torch.float32), stock, rtol=1e-3, atol=1e-4)


def test_the_path_decides_and_other_networks_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "backend", lambda device_type: "torch")
    assert not is_fused(fuse_if_faster(make("plain")))
    monkeypatch.setattr(dispatch, "backend", lambda device_type: "triton")
    assert is_fused(fuse_if_faster(make("plain")))
    assert not is_fused(fuse_if_faster(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="SanaTransformer2DModel"):
        fuse(nn.Linear(2, 2))


def test_a_processor_of_ones_own_is_kept() -> None:
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    class Mine(SanaLinearAttnProcessor2_0):
        pass

    network = make("plain")
    block: Any = network.get_submodule("transformer_blocks.0")
    block.attn1.set_processor(Mine())
    fuse(network)
    assert type(block.attn1.processor) is Mine
    unfuse(network)
    assert type(block.attn1.processor) is Mine


def guided_arguments(*, length: int = 7, null: int = 2) -> dict[str, Tensor]:
    """Both halves of guidance: the first rows' text is one token, padded with what a network must not read."""
    given = {name: torch.cat([value, value]) for name, value in arguments("plain").items()}
    given["encoder_attention_mask"][:null, 1:] = 0
    given["encoder_hidden_states"] = given["encoder_hidden_states"][:, :length]
    return given


def test_a_text_of_one_token_at_its_true_length_is_the_padded_one() -> None:
    stock = make("plain", torch.float64)
    ours = copy.deepcopy(stock)
    fuse(ours)
    given = {name: value.double() for name, value in guided_arguments().items()}
    padded = run(ours, given)
    asked = []
    for block in ours.get_submodule("transformer_blocks"):
        block.attn2.to_q.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    with alone(ours, 2):
        found = run(ours, given)
    assert asked == [2, 2]  # rows whose queries were computed, of 4
    theirs = run(stock, given)
    for name, value in found.items():
        torch.testing.assert_close(value, padded[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        # parts of diffusers' own blocks compute in float32 whatever they are given
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(run(ours, given)["output"], padded["output"])  # outside it is as it was


def test_blocks_that_are_computed_again_keep_the_padded_form() -> None:
    network = make("plain")
    fuse(network)
    given = guided_arguments()
    expected = run(network, given)
    network.enable_gradient_checkpointing()
    network.train()
    with alone(network, 2):
        output = network(**{**given, "hidden_states": given["hidden_states"].requires_grad_()}, return_dict=False)[0]
    output.sum().backward()  # outside: a block that now took another way would not fit what was saved
    assert torch.equal(output.detach(), expected["output"])
    text = text_of(network)
    assert text is not None and text.alone == 0


def test_keys_and_values_of_the_same_text_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, computed = make("qk-norm"), []
    fuse(network)
    given, real = guided_arguments(), cross_attention._keys_and_values

    def counted(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
        computed.append(tuple(text.shape))
        return real(attn, text)

    monkeypatch.setattr(cross_attention, "_keys_and_values", counted)

    def draw(x: Tensor) -> Tensor:
        with torch.no_grad():
            return network(**{**given, "hidden_states": x}, return_dict=False)[0]

    states = [given["hidden_states"], -given["hidden_states"]]
    plain = [draw(x) for x in states]
    assert len(computed) == 4
    computed.clear()
    with kept_text(network), kept_text(network), alone(network, 2):
        kept = [draw(x) for x in states]
        assert len(computed) == 2  # one a block, of the rows that have a text
        given["encoder_hidden_states"] = given["encoder_hidden_states"][:, :6]  # another shape is another text
        given["encoder_attention_mask"] = given["encoder_attention_mask"][:, :6]
        draw(states[0])
        assert len(computed) == 4
    for one, other in zip(plain, kept, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    draw(states[0])
    assert len(computed) == 6  # nothing is kept outside


def test_a_copy_of_a_network_knows_its_own_text() -> None:
    network = make("plain")
    fuse(network)
    other = shared_copy(network)
    with alone(network, 2):
        assert text_of(network) is not text_of(other)
    assert text_of(make("plain")) is None
