"""The errors that a user may see. Anything else that escapes is a bug of ours and shows its traceback."""

from __future__ import annotations

import errno
from pathlib import Path


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


class Interrupted(KeyboardInterrupt):
    """The command was stopped from outside. `hint` says what is saved, and how to go on."""

    def __init__(self, *, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


def cannot_write(path: str | Path, error: OSError) -> DdxError:
    """Return the error for a disk that does not take `path`, with the cure for its reason."""
    return DdxError(f"cannot write {path}: {error.strerror or error}", hint=cure_of(error))


def cure_of(error: OSError) -> str:
    """Return what a user can do about an error of the operating system."""
    if isinstance(error, ConnectionError | TimeoutError):
        return "check the network, then run the same command again"
    return _CURES.get(error.errno or 0, "check the path, or give another one with --out or --workspace")


_FREE = "free some space, then run the same command: it goes on"
_CURES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), then run the same command: it goes on",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`), then run the same command",
    errno.EROFS: "that file system is read only: give a folder on another one with --out or --workspace",
    errno.EACCES: "give a folder that you may write to with --out or --workspace",
    errno.EPERM: "give a folder that you may write to with --out or --workspace",
    errno.ENOTDIR: "a file is where a folder is needed: give another path with --out or --workspace",
    errno.EEXIST: "a file is where a folder is needed: give another path with --out or --workspace",
    errno.EISDIR: "a folder is where a file is needed: give the path of a file",
    errno.ENAMETOOLONG: "give a shorter name",
}


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of a library says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, names: list[str] | tuple[str, ...]) -> str | None:
    """Return the one of `names` that `name` was most likely meant to be, or None when nothing is close."""
    import difflib

    folded = {candidate.lower().replace("_", "-"): candidate for candidate in names}
    key = name.lower().replace("_", "-")
    matches = difflib.get_close_matches(key, list(folded), n=1, cutoff=0.6)
    if not matches:
        matches = [candidate for candidate in folded if len(key) >= 3 and (candidate.startswith(key))][:1]
    return folded[matches[0]] if matches else None
