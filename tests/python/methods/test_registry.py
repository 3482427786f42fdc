from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from ddx.errors import UsageError
from ddx.methods.base import Method
from ddx.methods.registry import METHODS, method_spec
from ddx.training.config import DistillConfig


def test_methods_are_listed_without_torch() -> None:
    code = "import sys, ddx.methods.registry, ddx.training.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_settings_do_not_shadow_the_trainer_s(name: str) -> None:
    own = {field.name for field in dataclasses.fields(METHODS[name].config)}
    assert own and not own & {field.name for field in dataclasses.fields(DistillConfig)}


@pytest.mark.parametrize("name", METHODS)
def test_the_implementation_of_a_method_exists(name: str) -> None:
    assert issubclass(METHODS[name].method, Method)


def test_an_unknown_method_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="lmc") as error:
        method_spec("lmc")
    assert error.value.hint is not None and "lcm" in error.value.hint
