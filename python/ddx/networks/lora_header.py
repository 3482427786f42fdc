"""The names of low-rank files, and what their headers say. This module needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddx.teachers.safetensors_header import header_of

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
COMFYUI_FILE = "comfyui_lora.safetensors"


def diffusers_config(folder: Path) -> dict[str, Any] | None:
    """Return the peft config in the header of diffusers' file in `folder`; None without the file, or such a header."""
    if not (folder / DIFFUSERS_FILE).is_file():
        return None
    header = metadata_of(folder / DIFFUSERS_FILE).get("lora_adapter_metadata")
    return None if header is None else {k.partition(".")[2]: value for k, value in json.loads(header).items()}


def metadata_of(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file. Raises DdxError for one that is none."""
    metadata: dict[str, str] = header_of(path).get("__metadata__") or {}
    return metadata
