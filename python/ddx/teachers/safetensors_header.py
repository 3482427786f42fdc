"""What a safetensors file says of itself, without torch and without its tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ddx.errors import DdxError


def header_of(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: dtype and shape by tensor. Raises DdxError for a file that is none."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length < 100_000_000 else None
    except (OSError, ValueError, struct.error) as error:
        raise DdxError(f"cannot read {path}: {error}", hint="is the file whole?") from error
    if not isinstance(header, dict):
        raise DdxError(f"{path} is no safetensors file", hint="is the file whole?")
    return header
