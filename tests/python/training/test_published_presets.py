"""Presets of published recipes: every key is a setting of the method, and the flags pick the right file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddx.config import Settings
from ddx.teachers.registry import TEACHERS
from ddx.training.presets import preset_folder, preset_names
from ddx.training.resolve import resolve

PUBLISHED = [name for name in preset_names() if not name.startswith("sana-tiny")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_resolves_and_names_its_source(name: str) -> None:
    teacher = max((t for t in TEACHERS if name.startswith(f"{t}-")), key=len)
    method, _, kind = name.removeprefix(f"{teacher}-").partition("-lora")
    asked = {"teacher": teacher, "method": method, **({"preset": "lora"} if name.endswith("-lora") else {})}
    config, method_config, _ = resolve([Settings(asked, "the test")])
    assert config.preset == name and kind == ""
    assert (config.lora_rank > 0) == name.endswith("-lora")
    assert method_config is not None
    text = (Path(preset_folder()) / f"{name}.yaml").read_text(encoding="utf-8")
    source = [line for line in text.splitlines() if line.startswith("#")]
    assert source[0].startswith("# The published") and "(commit " in " ".join(source)
