from __future__ import annotations

from collections import Counter

import pytest

from ddx.errors import DdxError
from ddx.scenes.captions import (
    COLOURS,
    KIND_SHARES,
    RELATIONS,
    SHAPES,
    ObjectSpec,
    SceneSpec,
    parse_caption,
    sample_captions,
    sample_scenes,
    split_of,
)


def test_every_caption_parses_back_to_its_scene() -> None:
    for spec in sample_scenes(500, seed=3):
        assert parse_caption(spec.caption) == spec


@pytest.mark.parametrize(
    ("caption", "spec"),
    [
        ("a small red circle", SceneSpec((ObjectSpec("circle", "red", "small"),))),
        ("three blue crosses", SceneSpec((ObjectSpec("cross", "blue"),) * 3)),
        (
            "a green triangle left of a large cyan square",
            SceneSpec((ObjectSpec("triangle", "green"), ObjectSpec("square", "cyan", "large")), "left of"),
        ),
    ],
)
def test_captions_read_as_they_are_meant(caption: str, spec: SceneSpec) -> None:
    assert parse_caption(caption) == spec
    assert spec.caption == caption


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a photograph of a cat",
        "a circle",
        "a red circle and a blue square",
        "two red circle",
        "three large red circles",
        "a red circle above a red square",
        "a small red circle above",
    ],
)
def test_other_sentences_are_refused_by_name(caption: str) -> None:
    with pytest.raises(DdxError, match="scenes grammar") as caught:
        parse_caption(caption)
    assert caught.value.hint


def test_splits_share_no_combination_and_each_holds_every_word() -> None:
    train = set(sample_captions(3000, seed=0, split="train"))
    held_out = set(sample_captions(1500, seed=0, split="held-out"))
    assert not train & held_out
    for captions in (train, held_out):
        words = " ".join(captions)
        assert all(word in words for word in (*SHAPES, *COLOURS, *RELATIONS, "small", "large", "two", "three"))


def test_each_kind_keeps_its_share_in_both_splits() -> None:
    for split in ("train", "held-out"):
        counts = Counter(spec.kind for spec in sample_scenes(3000, seed=1, split=split))
        for kind, share in KIND_SHARES.items():
            assert counts[kind] / 3000 == pytest.approx(share, abs=0.03)


def test_captions_depend_on_the_seed_alone() -> None:
    assert sample_captions(20, seed=4) == sample_captions(20, seed=4)
    assert sample_captions(20, seed=4) != sample_captions(20, seed=5)


def test_the_split_of_a_caption_never_changes() -> None:
    assert split_of(parse_caption("a small red circle")) == "train"
    assert [split_of(spec) for spec in sample_scenes(50, seed=2, split="held-out")] == ["held-out"] * 50
