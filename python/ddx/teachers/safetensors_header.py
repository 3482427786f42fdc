"""What a safetensors file says of itself, without torch and without its tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ddx.errors import DdxError

_LONGEST = 100_000_000  # bytes of a header, as the library has it


def header_of(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: dtype and shape by tensor. Raises DdxError for a file that is none."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            _refuse_other_content(path, start)
            (length,) = struct.unpack("<Q", start)
            text = stream.read(length) if length < _LONGEST else b""
        if len(text) < length < _LONGEST:
            raise DdxError(f"{path} is cut short, within its header", hint="fetch it again; was a copy stopped?")
        header = json.loads(text) if text else None
    except (ValueError, struct.error) as error:
        raise DdxError(f"{path} is no safetensors file: {error}", hint="is the file whole?") from error
    except OSError as error:
        raise DdxError(f"cannot read {path}: {error}", hint="is the file whole?") from error
    if not isinstance(header, dict):
        raise DdxError(f"{path} is no safetensors file", hint="is the file whole?")
    return header


def tensors_of(path: Path) -> dict[str, Any]:
    """Return dtype and shape by tensor. Raises DdxError for a file that is none, or that is cut short."""
    tensors = {name: entry for name, entry in header_of(path).items() if name != "__metadata__"}
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
    expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if (found := path.stat().st_size) < expected:
        raise DdxError(
            f"{path} is cut short: it has {found:,} bytes of {expected:,}", hint="fetch it again; was a copy stopped?"
        )
    return tensors


def _refuse_other_content(path: Path, start: bytes) -> None:
    """Raise DdxError for what downloads leave in the place of a file."""
    if not start:
        raise DdxError(f"{path} is empty", hint="fetch or make it again")
    if start.startswith(b"<"):
        raise DdxError(f"{path} is a web page", hint="was the download refused? does it need a login?")
    if start == b"version ":
        raise DdxError(f"{path} is a pointer of git-lfs, and not the file itself", hint="`git lfs pull` fetches it")
