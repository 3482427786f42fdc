"""Launches: on the device of the tensors, by one way in, with nothing worked out twice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ddx.kernels import launch
from ddx.kernels.gated_residual_norm_modulate import gated_residual_norm_modulate
from ddx.kernels.launch import Constants, Kernel, Launch


def nothing(x_ptr, BLOCK):  # type: ignore[no-untyped-def]
    """A kernel that is never compiled."""


class Compiled:
    """What Triton gives for a kernel: launched by `compiled[grid](all arguments)`."""

    def __init__(self, log: list[Any], constants: dict[str, Any]) -> None:
        self.log, self.constants = log, constants

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.log.append(("again", grid, arguments))


class Function:
    """What `triton.jit` gives, without a GPU."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        parameter = type("Parameter", (), {"name": "BLOCK", "is_constexpr": True})
        self.params = [parameter]

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **constants: Any) -> Compiled:
            self.log.append(("first", torch.cuda.current_device(), grid))
            return Compiled(self.log, constants)

        return run


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> tuple[Kernel, list[Any]]:
    """A kernel as on a machine with several GPUs, of which the first is the current one, and what happens to it."""
    log: list[Any] = []
    current = [0]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    made = Kernel(nothing)
    made.function, made._compiles = Function(log), True
    return made, log


def test_a_kernel_runs_on_the_device_of_its_tensors(kernel: tuple[Kernel, list[Any]]) -> None:
    made, log = kernel
    for index in (0, 1, 0):
        made.launch((4,), torch.device("cuda", index), Constants(BLOCK=8), 3)
    assert log == [("first", 0, (4,)), ("first", 1, (4,)), ("first", 0, (4,))]
    assert torch.cuda.current_device() == 0


def test_what_is_compiled_is_found_by_device_constants_and_arguments(kernel: tuple[Kernel, list[Any]]) -> None:
    made, log = kernel
    constants, x = Constants(BLOCK=8), torch.zeros(64)

    def start(x: Any = x, scalar: Any = 3, *, constants: Constants = constants, device: int = 0) -> str:
        made.launch((4, 2), torch.device("cuda", device), constants, x, (scalar, None))
        return str(log[-1][0])

    assert start() == "first"
    assert start() == start(torch.zeros(9)) == "again"
    assert log[1] == ("again", (4, 2, 1), (x, (3, None), 8))
    for changed in (
        {"x": x[1:]},  # whose address is not a multiple of 16
        {"x": x.half()},
        {"x": None},
        {"scalar": 4},
        {"scalar": 3.0},
        {"constants": Constants(BLOCK=8)},
        {"device": 1},
    ):
        assert [start(**changed), start(**changed)] == ["first", "again"], changed


def test_every_launch_goes_through_the_one_that_sets_the_device() -> None:
    folder = Path(launch.__file__).parent
    for file in sorted(folder.glob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        by_hand = [  # kernel[grid](...)
            ast.unparse(function)
            for function in calls
            if isinstance(function, ast.Subscript)
            and (isinstance(function.value, ast.Name) or function.value.attr == "function")
        ]
        assert bool(by_hand) == (file.name == "launch.py"), f"{file.name} launches {by_hand}"


def test_options_and_constants_are_made_once() -> None:
    device, block = torch.device("cpu"), {"BLOCK": 8, "num_warps": 2}
    made = Launch("made once", default=block)
    del launch.LAUNCHES["made once"]
    assert made.options(device) is made.options(torch.device("cpu"))
    assert made.options(device).joined(WIDTH=3) is made.options(device).joined(WIDTH=3)
    assert dict(made.options(device).joined(WIDTH=3)) == {**block, "enable_fp_fusion": False, "WIDTH": 3}
    with made.force({"BLOCK": 16}):
        assert made.options(device)["BLOCK"] == 16 and made.options(device) is made.options(device)
    assert made.options(device)["BLOCK"] == 8


def test_a_second_call_works_out_no_widths(triton_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    x, vector = torch.randn(1, 2, 24), torch.randn(1, 24)
    gated_residual_norm_modulate(x, x, vector, vector, vector)
    monkeypatch.setattr(triton, "next_power_of_2", None)
    gated_residual_norm_modulate(x, x, vector, vector, vector)
