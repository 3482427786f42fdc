"""The border to the compiled core: its errors become ddx's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ddx._core import CoreError
from ddx.errors import DdxError, UsageError


@contextmanager
def core_errors() -> Iterator[None]:
    """Raise a CoreError of the block as DdxError, or as UsageError when the request itself was wrong."""
    try:
        yield
    except CoreError as error:
        message, hint, usage = error.args
        raise (UsageError if usage else DdxError)(message, hint=hint) from error
