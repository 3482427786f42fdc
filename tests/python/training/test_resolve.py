from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ddx.config import Settings, read_yaml
from ddx.errors import UsageError
from ddx.methods.lcm import LCMConfig
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.registry import METHODS
from ddx.methods.shortcut import ShortcutConfig
from ddx.run_record import write_run
from ddx.training.prepare_config import PrepareConfig
from ddx.training.presets import preset_folder, preset_names
from ddx.training.resolve import resolve, resolve_preparation, resolve_recipe


def layers(**values: Any) -> list[Settings]:
    return [Settings(values, "--set")]


def test_the_preset_of_the_teacher_lies_under_what_is_given() -> None:
    plain, *_ = resolve(layers(teacher="sana-tiny", preset="none"))
    tuned, method, added = resolve(layers(teacher="sana-tiny", seed=5))
    mine, *_ = resolve(layers(teacher="sana-tiny", batch_size=3))
    assert plain.preset == "none" and tuned.preset == "sana-tiny-lcm" and tuned.seed == 5
    assert tuned.batch_size != plain.batch_size and mine.batch_size == 3
    assert isinstance(method, LCMConfig) and method != LCMConfig() and added == AddedDiscriminatorConfig()


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_rate_and_warm_up_follow_the_batch_where_asked(scaling: str, factor: float) -> None:
    recipe, *_ = resolve(layers(teacher="sana-tiny", method="shortcut"))
    given: dict[str, Any] = {"batch_size": 4 * recipe.batch_size, "lr_scaling": scaling, "warmup_images": 100}
    mine, *_ = resolve(layers(teacher="sana-tiny", method="shortcut", **given))
    assert mine.learning_rate == pytest.approx(factor * recipe.learning_rate)
    assert mine.warmup_steps == 4  # of 32 images


def test_what_follows_the_batch_says_so() -> None:
    given: dict[str, Any] = {"batch_size": 32, "lr_scaling": "sqrt", "warmup_images": 100}
    recipe = resolve_recipe(layers(teacher="sana-tiny", method="shortcut", **given))
    assert recipe.origins["learning_rate"] == "ddx: --lr-scaling sqrt: 0.0005 is for batches of 8"
    assert recipe.origins["warmup_steps"] == "ddx: --warmup-images 100"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scaling": "linear", "learning_rate": 1e-4}, "learning_rate = 0.0001 is given"),
        ({"warmup_images": 100, "warmup_steps": 10}, "say the same"),
    ],
)
def test_what_would_follow_the_batch_is_not_given_too(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve(layers(teacher="sana-tiny", **given))
    assert caught.value.hint == "leave one of them away"


def test_another_teacher_has_the_published_defaults() -> None:
    config, method, _ = resolve(layers())
    assert config.teacher == "sana-600m" and config.preset == "none" and method == METHODS["lcm"].config()


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("sana-tiny")])
def test_every_preset_resolves_and_says_what_it_is_for(name: str) -> None:
    named = [method for method in METHODS if name.startswith(f"sana-tiny-{method}")]
    for method in named or METHODS:
        config, *_ = resolve(layers(teacher="sana-tiny", method=method, preset=name))
        assert config.preset == name
    assert (preset_folder() / f"{name}.yaml").read_text().startswith("# ")


def test_methods_that_share_a_preset_differ_in_what_is_their_own_and_not_in_the_budget() -> None:
    resolved = [resolve(layers(teacher="sana-tiny", method=method, preset="sana-tiny")) for method in METHODS]
    assert len({(config.train_steps, config.batch_size) for config, *_ in resolved}) == 1
    shortcut, own, _ = resolve(layers(teacher="sana-tiny", method="shortcut"))
    assert isinstance(own, ShortcutConfig) and own.smallest_jumps != ShortcutConfig().smallest_jumps
    sid, *_ = resolve(layers(teacher="sana-tiny", method="sid"))
    assert sid.learning_rate != shortcut.learning_rate
    assert set(read_yaml(preset_folder() / "sana-tiny.yaml")["methods"]) <= set(METHODS)


def test_a_prepared_teacher_has_the_presets_of_the_one_it_was_made_of(tmp_path: Path) -> None:
    write_run(tmp_path, {"prepared_from": "sana-tiny"}, finished=True)
    config, method, added = resolve(layers(teacher=str(tmp_path), method="sana-sprint"))
    _, wanted, _ = resolve(layers(teacher="sana-tiny", method="sana-sprint"))
    assert config.preset == "sana-tiny" and config.teacher == str(tmp_path) and method == wanted
    assert added is None  # it has a discriminator of its own


def test_a_preparation_takes_of_a_preset_what_it_has() -> None:
    tuned = resolve_preparation(layers(teacher="sana-tiny", batch_size=3))
    distilled, *_ = resolve(layers(teacher="sana-tiny", method="scm"))
    assert (tuned.preset, tuned.batch_size, tuned.train_steps) == ("sana-tiny", 3, distilled.train_steps)
    assert resolve_preparation(layers()) == PrepareConfig(preset="none")
    with pytest.raises(UsageError, match="unknown preset"):
        resolve_preparation(layers(teacher="sana-tiny", preset="sana-tinny"))


def test_a_preset_may_be_named_by_its_ending() -> None:
    config, *_ = resolve(layers(teacher="sana-tiny", preset="full"))
    assert config.preset == "sana-tiny-lcm-full"


@pytest.mark.parametrize(
    ("values", "named", "cure"),
    [
        ({"method": "lmc"}, "lmc", "lcm"),
        ({"bach_size": 4}, "bach_size", "batch_size"),
        ({"solver_stepz": 4}, "solver_stepz", "solver_steps"),
        ({"preset": "fulll", "teacher": "sana-tiny"}, "fulll", "full"),
        ({"learning_rate": 0}, "learning_rate", "learning_rate"),
        ({"train_steps": 0}, "train_steps", "--train-steps 1"),
        ({"sample_steps": "0,1"}, "sample_steps", "1,2,4"),
        ({"dtype": "fp8"}, "dtype", "float32"),
    ],
)
def test_mistakes_are_named_with_their_cure(values: dict[str, Any], named: str, cure: str) -> None:
    with pytest.raises(UsageError, match=named) as error:
        resolve(layers(**values))
    assert error.value.hint is not None and cure in error.value.hint


def test_a_teacher_is_one_however_its_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the same command from another place would not go on with its student."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for text in ("mine", "./mine/", str(tmp_path / "mine")):
        settings = Settings({"teacher": text}, "test")
        assert resolve([settings])[0].teacher == str((tmp_path / "mine").resolve())
        assert resolve_preparation([settings]).teacher == str((tmp_path / "mine").resolve())
    assert resolve([Settings({"teacher": "sana-tiny"}, "test")])[0].teacher == "sana-tiny"
