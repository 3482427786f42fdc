"""Prompt lists as the authors of protocols hand them out: lines of text, COCO's annotations, MJHQ-30K's metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddx.errors import UsageError
from ddx.sampling.prompts import read_prompts

_KINDS = "a list of texts, COCO's captions_*.json, or MJHQ-30K's meta_data.json"


def read_prompt_list(path: Path) -> tuple[str, ...]:
    """Return the prompts of a text file, one a line, or of a JSON file of a known kind; UsageError for others.

    Of COCO's annotations each picture's first caption by id, in the order of the pictures.
    """
    if path.suffix != ".json":
        return read_prompts(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint=f"--prompts takes lines of text, or {_KINDS}") from error
    prompts = tuple(text for text in _texts(content) if text.strip())
    if not prompts:
        raise UsageError(f"{path} holds no prompts that ddx knows", hint=f"--prompts takes lines of text, or {_KINDS}")
    return prompts


def prompts_hash(prompts: Sequence[str]) -> str:
    """Return what tells a list of prompts from another, in their order."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def _texts(content: Any) -> list[str]:
    if isinstance(content, list):
        return [" ".join(text.split()) for text in content if isinstance(text, str)]
    if not isinstance(content, dict):
        return []
    if isinstance(content.get("annotations"), list):
        first: dict[int, tuple[int, str]] = {}
        for entry in content["annotations"]:
            if isinstance(entry, dict) and isinstance(entry.get("caption"), str) and "image_id" in entry:
                number = entry.get("id", 0)
                if entry["image_id"] not in first or number < first[entry["image_id"]][0]:
                    first[entry["image_id"]] = (number, " ".join(entry["caption"].split()))
        return [first[image][1] for image in sorted(first)]
    entries = content.values()
    return [
        str(entry["prompt"]) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("prompt"), str)
    ]
