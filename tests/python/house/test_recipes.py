"""docs/recipes.md is what the presets say."""

from __future__ import annotations

from ddx.methods.registry import METHODS
from recipes_page import PAGE, page, published


def test_the_page_of_recipes_is_written_from_the_presets() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/python/recipes_page.py`"


def test_it_names_every_recipe_and_every_method() -> None:
    text = page()
    for _, _, preset in published():
        assert f"{preset.name}.yaml" in text
        assert all(departure.reason in text for departure in preset.departures.values())
    assert all(f"| {method} | method's defaults; published for " in text for method in METHODS)
