"""What a pipeline does not read of a text: it cuts long ones without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LONGEST_SHOWN = 200  # characters of what was cut


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A text that is too long: its tokens, those that the pipeline reads, and the text that is left out."""

    given: int
    kept: int
    left_out: str

    @property
    def counts(self) -> str:
        """The two numbers in words."""
        return f"{self.kept} of its {self.given} tokens are read"

    def __str__(self) -> str:
        shown = self.left_out if len(self.left_out) <= LONGEST_SHOWN else self.left_out[:LONGEST_SHOWN] + "…"
        return f"{self.counts}; left out: {shown!r}"


def cut(tokenizer: Any, text: str, limit: int, num_before: int = 0) -> Cut | None:
    """Return what an encoder of `limit` tokens leaves out of a text, None where it reads all of it.

    The first `num_before` tokens of the text, and of the limit, are what a pipeline puts in front of a user's.
    """
    if len(text.encode()) + 2 <= limit:  # a token has a byte of the text at least, but for one that opens it
        return None
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) <= limit:
        return None
    return Cut(given=len(ids) - num_before, kept=limit - num_before, left_out=tokenizer.decode(ids[limit:]).strip())
