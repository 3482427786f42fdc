"""An unfinished run of an older ddx goes on: a setting that it did not have means what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddx.config import to_dict
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.registry import method_spec
from ddx.training.config import ADDED_SINCE, RESUMABLE_CHANGES, DistillConfig

# the names of the settings that a record had before published recipes, by method
NAMES: dict[str, str] = json.loads(Path(__file__).with_name("settings_of_older_runs.json").read_text())
METHODS = [name for name in NAMES if name not in ("every method", "tcm")]  # TCM's second stage is another one now


@pytest.mark.parametrize("method", METHODS)
def test_a_new_setting_does_not_stop_an_older_run(method: str) -> None:
    had = {*NAMES["every method"].split(), *NAMES[method].split()}
    configs = (DistillConfig(method=method), AddedDiscriminatorConfig(), method_spec(method).config())
    now = {name for config in configs for name in to_dict(config)}
    assert now - had - ADDED_SINCE.keys() - RESUMABLE_CHANGES == set()
