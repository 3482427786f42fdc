"""What the documents say of methods is what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddx.methods.registry import METHODS


def test_the_example_of_a_method_is_the_real_file(repository: Path) -> None:
    text = (repository / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    source = (repository / "python" / "ddx" / "methods" / "diff_instruct.py").read_text(encoding="utf-8")
    assert f"```python\n{source.rstrip()}\n```" in text


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_described(name: str, repository: Path) -> None:
    assert f"`{name}`" in (repository / "docs" / "methods.md").read_text(encoding="utf-8")
