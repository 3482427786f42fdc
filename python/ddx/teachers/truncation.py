"""What a pipeline does not read of a text: it cuts long ones without a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddx.teachers.sana_text import pipeline_defaults, preprocess

LONGEST_SHOWN = 200  # characters of what was cut


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A text that is too long: its tokens, those that the pipeline reads, and the text that is left out."""

    given: int
    kept: int
    left_out: str

    def __str__(self) -> str:
        shown = self.left_out if len(self.left_out) <= LONGEST_SHOWN else self.left_out[:LONGEST_SHOWN] + "…"
        return f"{self.kept} of its {self.given} tokens are read; left out: {shown!r}"


def cut(tokenizer: Any, pipeline_class: str, text: str) -> Cut | None:
    """Return what the pipeline leaves out of a text, None where it reads all of it.

    SANA's limit counts its instruction, which stands before the text and whose last token joins the first word.
    """
    before, limit = 0, tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    if pipeline_class.startswith("Sana"):
        instruction, max_length = pipeline_defaults()
        before = len(tokenizer.encode(instruction, add_special_tokens=False)) - 1
        limit, text = before + max_length - 1, instruction + preprocess([text])[0]
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) <= limit:
        return None
    return Cut(given=len(ids) - before, kept=limit - before, left_out=tokenizer.decode(ids[limit:]).strip())
