"""Configs: conversion, choices, precedence, and errors that name the key, the value and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ddx.config import REQUIRED, build, build_many, option, parse_sets, read_yaml, to_dict
from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Example:
    batch_size: int = option(64, "pictures a step")
    learning_rate: float = option(1e-4, "peak")
    flip: bool = option(False, "mirror")
    device: str = option("auto", "where", choices=("auto", "cpu", "cuda"))
    out: Path | None = option(None, "folder")
    steps: tuple[int, ...] = option((1, 2, 4), "step counts")
    prompts: tuple[str, ...] = option((), "texts")


@dataclass(frozen=True, kw_only=True)
class Other:
    huber_c: float = option(0.001, "bend")
    name: str = option(REQUIRED, "a name")


def test_later_mappings_win_and_text_is_converted() -> None:
    config = build(Example, {"batch_size": 8}, parse_sets(["batch-size=1e3", "learning_rate=3e-5", "flip=yes"]))
    assert config == Example(batch_size=1000, learning_rate=3e-5, flip=True)


def test_tuples_paths_and_none() -> None:
    config = build(Example, parse_sets(["steps=1,2", "out=a/b", "prompts=a cat, a dog"]))
    assert config == Example(steps=(1, 2), out=Path("a/b"), prompts=("a cat, a dog",))
    assert build(Example, {"out": "x"}, parse_sets(["out=none"])).out is None
    assert build(Example, {"steps": ("1,2", 8)}).steps == (1, 2, 8)
    assert build(Example, parse_sets(["prompts=[a cat, a dog]"])).prompts == ("a cat", "a dog")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("batchsize=8", "unknown key `batchsize` in --set", "did you mean `batch_size`?"),
        ("zzz=8", "unknown key `zzz`", "known keys: batch_size"),
        ("batch_size=big", "batch_size = 'big' in --set: a whole number", "--set batch_size=8"),
        ("batch_size=1.5", "a whole number", "--set"),
        ("learning_rate=fast", "a number", "--set"),
        ("flip=perhaps", "true or false", "--set"),
        ("device=gpu", "device = 'gpu' in --set: not one of auto, cpu, cuda", "one of: auto, cpu, cuda"),
        ("device=cudaa", "not one of", "did you mean `cuda`?"),
        ("no equals sign", "not KEY=VALUE", "--set"),
    ],
)
def test_mistakes_are_explained(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        build(Example, parse_sets([text]))
    assert message in str(error.value)
    assert hint in str(error.value.hint)
    assert error.value.exit_code == 2


def test_two_classes_share_one_namespace() -> None:
    example, other = build_many((Example, Other), {"huber_c": "0.01", "batch_size": 2, "name": 3})
    assert (example.batch_size, other.huber_c, other.name) == (2, 0.01, "3")


def test_a_required_key_is_asked_for() -> None:
    with pytest.raises(UsageError, match="--name is missing: a name"):
        build(Other, {})


def test_yaml_errors_name_the_place(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("batch_size: 8\nsteps: [1, 2\nflip: x\n")
    with pytest.raises(UsageError, match=r"settings\.yaml, line \d"):
        read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(UsageError, match="does not hold a mapping"):
        read_yaml(path)
    path.write_text("bach_size: 8\n")
    with pytest.raises(UsageError, match=r"unknown key `bach_size` in .*settings\.yaml"):
        build(Example, read_yaml(path))
    with pytest.raises(UsageError, match="cannot read"):
        read_yaml(tmp_path / "none.yaml")


def test_to_dict_is_plain() -> None:
    assert to_dict(Example(out=Path("x")))["out"] == "x"
    assert to_dict(Example())["steps"] == [1, 2, 4]
