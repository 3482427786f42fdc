"""The two errors that a user may see. Anything else that escapes is a bug of ours and shows its traceback."""

from __future__ import annotations


class DdxError(Exception):
    """Something outside the program is wrong: a file, a network, a disk. `hint` is the cure, in one line."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DdxError):
    """The command or its configuration is wrong: an unknown key, a value out of its set, two flags that clash."""

    exit_code = 2


def nearest(name: str, names: list[str] | tuple[str, ...]) -> str | None:
    """Return the one of `names` that `name` was most likely meant to be, or None when nothing is close."""
    import difflib

    folded = {candidate.lower().replace("_", "-"): candidate for candidate in names}
    key = name.lower().replace("_", "-")
    matches = difflib.get_close_matches(key, list(folded), n=1, cutoff=0.6)
    if not matches:
        matches = [candidate for candidate in folded if len(key) >= 3 and (candidate.startswith(key))][:1]
    return folded[matches[0]] if matches else None
