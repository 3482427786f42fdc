"""docs/recipes.md, written from the presets: `python tests/python/recipes_page.py`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ddx.cli.console import as_set
from ddx.methods.registry import METHODS
from ddx.training.preset_file import Preset, link, read_preset, short
from ddx.training.presets import preset_folder, preset_names, preset_parts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
# Published students whose authors say how they are drawn, and not how they were trained.
STUDENTS = (
    (
        "Qwen-Image-Lightning",
        "qwen-image",
        "a LoRA for 4 steps and one for 8, drawn without guidance; times shifted by 3, in the distillation too",
        "ModelTC/Qwen-Image-Lightning@25d1e9935ba97e1f60503f8c000201e08b1fe8f4:generate_with_diffusers.py",
    ),
    (
        "TwinFlow of Z-Image-Turbo",
        "z-image",
        "weights for two steps, called experimental; the code trains SANA, Qwen-Image and Stable Diffusion 3.5",
        "inclusionAI/TwinFlow@a109a71b19634d9c5d5c45c3587d36b19f014917:README.md",
    ),
    (
        "TDM of Stable Diffusion 3 and 3.5",
        "stable-diffusion-3",
        "LoRAs for 4 steps, of Stable Diffusion 3 at a scale of 0.125 and times shifted by 6; the code trains PixArt-α",
        "Luo-Yihong/TDM@81b019f91539948d49da86cef12ccc64030c5022:README.md",
    ),
)
FOLDER = "../python/ddx/presets/distill"
INTRODUCTION = """# Recipes

`ddx distill --method NAME --teacher NAME` takes the recipe that was published for the teacher's family, where there is one. `--dry-run` prints it with the source of each value; [distill.md](distill.md#settings-of-all-methods) says how it is found. A variant is taken by its ending: `--preset lora`.

Each file cites, key by key, the paper or the authors' file at a commit. What the authors do not name is left out, and is ddx's default. The recipes were not run here at their size: they need the teachers' weights and GPUs. This page is written from the files, by `python tests/python/recipes_page.py`.
"""  # noqa: E501


@functools.cache
def published() -> list[tuple[str, str, Preset]]:
    """The presets that cite works, as (method, family or teacher, preset), in the order of the methods."""
    found = []
    for name in preset_names():
        subject, method, _ = preset_parts(name)
        preset = read_preset(preset_folder() / f"{name}.yaml", method)
        if preset.works:
            found.append((method, subject, preset))
    return sorted(found, key=lambda row: (list(METHODS).index(row[0]), row[1], str(row[2].name)))


@functools.cache
def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_recipes(), "", *_coverage(), "", *_departures(), "", *_students(), ""])


def _table(headers: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    lines = [list(headers), ["---"] * len(headers), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _named(preset: Preset) -> str:
    return f"[`{preset.name}`]({FOLDER}/{preset.name}.yaml)"


def _value(preset: Preset, key: str) -> str:
    return as_set(preset.settings[key]) if key in preset.settings else "–"


def _guidance(preset: Preset) -> str:
    if "guidance_set" in preset.settings:
        return _value(preset, "guidance_set")
    low, high = _value(preset, "guidance_min"), _value(preset, "guidance_max")
    return low if low == high else f"{low} to {high}"


def _recipes() -> list[str]:
    rows = []
    for method, subject, preset in published():
        works = ", ".join(f"[{short(work)}]({link(work)})" for work in preset.cited[:1])
        values = (_value(preset, key) for key in ("train_steps", "batch_size", "learning_rate"))
        rows.append([method, subject, _named(preset), preset.title, works, *values, _guidance(preset)])
    headers = ("method", "family", "preset", "what it is", "source", "steps", "batch", "rate", "guidance")
    note = "A dash: the source names no value. Guidance counts as uncond + s (cond - uncond); a range is an input."
    return ["## Published recipes", "", *_table(headers, rows), "", note]


def _coverage() -> list[str]:
    rows = []
    for method in METHODS:
        families = ", ".join(f"`{name}`" for name in dict.fromkeys(of for m, of, _ in published() if m == method))
        rows.append([method, f"method's defaults; published for {families or 'no family that ddx knows'}"])
    intro = "A method on a family that its row does not name has the method's own defaults."
    return ["## Every other family", "", intro, "", *_table(("method", "on every other family"), rows)]


def _departures() -> list[str]:
    """Presets that depart alike share a row."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for _, _, preset in published():
        for key, departure in preset.departures.items():
            values: list[Any] = [departure.published, departure.ours]
            cells = [value if isinstance(value, str) else as_set(value) for value in values]
            what = (key if " " in key else f"`{key}`", *cells, departure.reason, departure.measured or "nothing")
            shared.setdefault(what, []).append(_named(preset))
    headers = ("presets", "what", "published", "here", "reason", "measured")
    intro = "Where recipes depart from what was published, and what was measured."
    return ["## Departures", "", intro, "", *_table(headers, [[", ".join(n), *w] for w, n in shared.items()])]


def _students() -> list[str]:
    rows = [[name, family, facts, f"[{short(work)}]({link(work)})"] for name, family, facts, work in STUDENTS]
    headers = ("student", "family", "what is published", "source")
    intro = "What is public of students whose training is not."
    return ["## Without a recipe", "", intro, "", *_table(headers, rows)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
