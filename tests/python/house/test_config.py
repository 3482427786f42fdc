"""Configs: conversion, choices, precedence, and errors that name the key, the value and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ddx.config import REQUIRED, Settings, build, build_many, option, parse_sets, read_yaml, to_dict
from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Example:
    batch_size: int = option(64, "pictures a step")
    learning_rate: float = option(1e-4, "peak")
    flip: bool = option(False, "mirror")
    device: str = option("auto", "where", choices=("auto", "cpu", "cuda"))
    out: Path | None = option(None, "folder")
    size: int | None = option(None, "pixels", example=512)
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
        ("batch_size=big", "batch_size = 'big' in --set: a whole number", "for example --set batch_size=64"),
        ("size=big", "a whole number", "for example --set size=512"),
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


@pytest.mark.parametrize(
    ("origin", "message", "hint"),
    [
        ("the flags", "--batch-size big: a whole number is expected", "for example --batch-size 64"),
        ("--set", "batch_size = 'big' in --set: a whole", "for example --set batch_size=64"),
        ("a/b.yaml", "batch_size = 'big' in a/b.yaml: a whole", "for example batch_size: 64"),
    ],
)
def test_an_error_is_written_as_the_value_was(origin: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        build(Example, Settings({"batch_size": "big"}, origin))
    assert error.value.hint == hint


@pytest.mark.parametrize("text", ["20000", "20_000", "2e4", "2.0e4", "+20000", 20000, 2e4])
def test_a_whole_number_may_be_written_so(text: str | float, tmp_path: Path) -> None:
    """By flag, by --set and in YAML alike."""
    assert build(Example, Settings({"batch_size": text}, "the flags")).batch_size == 20000
    assert build(Example, parse_sets([f"batch_size={text}"])).batch_size == 20000
    (tmp_path / "settings.yaml").write_text(f"batch_size: {text}\n")
    assert build(Example, read_yaml(tmp_path / "settings.yaml")).batch_size == 20000


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(("10k", "10000"), ("1.5M", "1500000"), ("1,000", "1000"), ("12,000,000", "12000000"), ("512x512", "512")),
        *(("512px", "512"), ("50 steps", "50")),
        # these are no whole numbers, or say no number at all
        *(("512x768", None), ("1e-3", None), ("1.5", None), ("1e400", None), ("nan", None), ("0,5", None)),
        *(("9007199254740993.0", None), ("1/4", None), ("", None), ("true", None), ("0x10", None)),
    ],
)
def test_a_number_that_was_meant_is_suggested(text: str, meant: str | None) -> None:
    with pytest.raises(UsageError, match="a whole number") as error:
        build(Example, Settings({"batch_size": text}, "the flags"))
    assert error.value.hint == (f"write --batch-size {meant}" if meant else "for example --batch-size 64")


@pytest.mark.parametrize(("text", "meant"), [("0,5", "0.5"), ("50%", "0.5"), ("1/4", "0.25"), ("2e-5x", None)])
def test_so_is_a_fraction(text: str, meant: str | None) -> None:
    with pytest.raises(UsageError, match="a number") as error:
        build(Example, Settings({"learning_rate": text}, "the flags"))
    assert error.value.hint == (f"write --learning-rate {meant}" if meant else "for example --learning-rate 0.0001")


def test_an_empty_text_in_a_list_is_one_of_them() -> None:
    assert build(Example, Settings({"prompts": ("", "a cat")}, "the flags")).prompts == ("", "a cat")
    assert build(Example, parse_sets(["prompts="])).prompts == ()


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
