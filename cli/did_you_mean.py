"""What was meant by a flag, a key or an argument that a command does not have."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import click

from ddx.cli.foreign_words import foreign_commands, foreign_words
from ddx.errors import nearest

_FLAG = re.compile(r"--[a-z0-9][a-z0-9-]*")
_QUOTED = re.compile(r"(`[^`]*`)")


def normal(word: str) -> str:
    """Return a flag or a key as the tables write it: `--Learning_Rate` and `optim.learning_rate` as `learning-rate`."""
    return word.strip().rpartition(".")[2].lower().lstrip("-").replace("_", "-")


@functools.cache
def _answers() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for command, word, answer in foreign_words():
        found.setdefault((command, word), answer)
    return found


def flag_hint(command: str, flag: str) -> str | None:
    """Return the hint for a flag that other programs have: the one that was meant, or why there is none."""
    answer = _answers().get((command, normal(flag)))
    if answer is None:
        return None
    return f"did you mean {answer}?" if _is_flag(answer) else answer


def key_hint(command: str, key: str, keys: Sequence[str]) -> str | None:
    """Return the same for a key of --set or of a YAML file: flags are written as those of `keys` that they set."""
    answer = _answers().get((command, normal(key)))
    if answer is None:
        return None
    flag, _, value = answer.partition(" ")
    if _is_flag(answer) and value:
        return f"did you mean `{_as_key(flag, keys)}: {value}`?"
    if _is_flag(answer):
        return f"did you mean `{_as_key(answer, keys)}`?"
    pieces = _QUOTED.split(answer)  # commands in backticks stay as they are typed
    return "".join(p if p.startswith("`") else _FLAG.sub(lambda m: _as_key(m[0], keys), p) for p in pieces)


def near_flag(flag: str, command: click.Command, context: click.Context) -> str | None:
    """Return the flag of a command that is most like an unknown one; the dashes before them do not count."""
    own = [f for p in command.get_params(context) for f in (*p.opts, *p.secondary_opts) if f.startswith("--")]
    near = nearest(normal(flag), [name.removeprefix("--") for name in own])
    return f"--{near}" if near else None


def command_hint(name: str) -> str | None:
    """Return the hint for a command that other programs have."""
    return foreign_commands().get(normal(name))


def argument_hint(command: str, word: str) -> str | None:
    """Return which flag an argument without one was meant for; None where nothing suggests itself."""
    from ddx.methods.registry import METHODS
    from ddx.teachers.registry import TEACHERS

    path = Path(word).expanduser()
    if word in METHODS and command == "distill":
        flag = "--method"
    elif word in TEACHERS and command in ("distill", "prepare", "evaluate"):
        flag = "--teacher"
    elif (path / "zarr.json").is_file() and command in ("distill", "prepare"):
        flag = "--data"
    elif (path / "model_index.json").is_file() and command in ("sample", "evaluate"):
        flag = "--student"
    elif command == "sample":
        return f"prompts have a flag: --prompt {_quoted(word)}"
    else:
        return None
    return f"did you mean {flag} {_quoted(word)}?"


def flags_named(command: str, answer: str) -> list[tuple[str, str]]:
    """Return every (command, flag) that an answer names; what stands in backticks belongs to the command there."""
    found = []
    for piece in _QUOTED.split(answer):
        owner: str | None = command
        if piece.startswith("`"):
            words = piece.strip("`").split()
            owner = None
            if words[0] == "ddx":
                owner = " ".join(word for word in words[1:3] if re.fullmatch(r"[a-z]+", word)) or None
        if owner is not None:
            found += [(owner, flag) for flag in _FLAG.findall(piece)]
    return found


def _is_flag(answer: str) -> bool:
    """Whether an answer is a flag alone, or with its value."""
    return re.fullmatch(r"--[a-z0-9-]+( [a-z0-9:.-]+)?", answer) is not None


def _as_key(flag: str, keys: Sequence[str]) -> str:
    name = flag.removeprefix("--").replace("-", "_")
    if name.startswith("no_") and name.removeprefix("no_") in keys:
        return f"{name.removeprefix('no_')}: false"
    return name if name in keys else flag


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w./:@%+=,-]+", word) else '"' + word.replace('"', '\\"') + '"'
