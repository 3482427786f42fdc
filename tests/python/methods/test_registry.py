from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import get_type_hints

import pytest

from ddx.errors import UsageError
from ddx.methods.base import Method
from ddx.methods.parts.flow_method import FlowMethod
from ddx.methods.registry import METHODS, method_spec
from ddx.training.config import DistillConfig


def test_methods_are_listed_without_torch() -> None:
    code = "import sys, ddx.methods.registry, ddx.training.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", METHODS)
def test_no_setting_of_a_method_shadows_one_of_the_trainer_or_of_a_discriminator(name: str) -> None:
    names = [field.name for cls in (DistillConfig, *METHODS[name].configs) for field in dataclasses.fields(cls)]
    assert len(names) == len({*names})


@pytest.mark.parametrize("name", METHODS)
def test_the_row_of_a_method_names_its_class_and_the_settings_that_it_has(name: str) -> None:
    spec = METHODS[name]
    assert issubclass(spec.method, FlowMethod) and get_type_hints(spec.method)["config"] is spec.config
    module, _, _ = spec.class_name.partition(".")
    assert module == name.replace("-", "_") and spec.config_name.startswith(f"{module}.")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_three_classes_deep_at_most(name: str) -> None:
    above = [cls for cls in METHODS[name].method.__mro__ if issubclass(cls, Method) and cls is not Method]
    assert len(above) - 1 <= 3


def test_an_unknown_method_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="lmc") as error:
        method_spec("lmc")
    assert error.value.hint is not None and "lcm" in error.value.hint
