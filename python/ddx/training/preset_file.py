"""The file of a preset: settings, and beside them where each is from.

    title: Latent consistency distillation of Stable Diffusion XL
    learning_rate: 1.0e-6                # the settings themselves, as in any YAML file of settings
    weight_decay: 0.0
    methods: {sid: {alpha: 1.2}}         # where several methods share the file: what one has for itself
    works:                               # the works that are cited: a paper, or a file at a commit of a repository
      paper: arXiv:2310.04378
      readme: huggingface/diffusers@031aab36:examples/consistency_distillation/README_sdxl.md
    source:                              # setting: work, and the place in it
      learning_rate: readme, the command
    departures:                          # where we differ from what was published
      weight_decay: {published: 0.01, ours: 0.0, reason: why, measured: docs/log.md}

A setting without a source is ours. A departure whose key has a space is no setting but a trait of the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddx.config import Settings, read_yaml

_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{7,40}):(?P<path>\S+)")
_PAPER = re.compile(r"arXiv:\d{4}\.\d{5}")


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A published value that is another one here: both, why, and what was measured (empty: nothing)."""

    published: Any
    ours: Any
    reason: str
    measured: str = ""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset's settings for one method, and where they are from."""

    name: str | None
    settings: Settings
    title: str = ""
    works: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    departures: Mapping[str, Departure] = field(default_factory=dict)

    def citation(self, key: str) -> str | None:
        """Return where a setting was published, in short, with its work's number in `cited`; None if it is ours."""
        if key not in self.source:
            return None
        work, comma, place = self.source[key].partition(",")
        number = self.cited.index(self.works[work]) + 1
        return f"{short(self.works[work])} [{number}]" + (f",{place}" if comma else "")

    @property
    def cited(self) -> tuple[str, ...]:
        """The works that the settings' sources name, in the file's order."""
        named = {text.partition(",")[0] for text in self.source.values()}
        return tuple(work for name, work in self.works.items() if name in named)

    @property
    def traits(self) -> dict[str, Departure]:
        """The departures that no setting expresses."""
        return {key: departure for key, departure in self.departures.items() if " " in key}


def short(work: str) -> str:
    """Return a work as a table has room for it: its repository, or its arXiv id."""
    file = _FILE.fullmatch(work)
    return file["repository"] if file else work


def is_work(text: str) -> bool:
    """Return whether the text cites a paper by its arXiv id, or a file at a commit."""
    return bool(_FILE.fullmatch(text) or _PAPER.fullmatch(text))


def link(work: str) -> str:
    """Return the address of a cited work."""
    file = _FILE.fullmatch(work)
    if file:
        return f"https://github.com/{file['repository']}/blob/{file['commit']}/{file['path']}"
    return f"https://arxiv.org/abs/{work.removeprefix('arXiv:')}"


def read_preset(path: Path, method: str) -> Preset:
    """Return the preset of a file, as it is for one method."""
    content = dict(read_yaml(path))
    own = content.pop("methods", {}).get(method, {})
    about = {key: content.pop(key, {}) for key in ("works", "source", "departures")}
    return Preset(
        name=path.stem,
        title=str(content.pop("title", "")),
        settings=Settings({**content, **own}, f"preset {path.stem}"),
        works=about["works"],
        source=about["source"],
        departures={key: Departure(**entry) for key, entry in about["departures"].items()},
    )
