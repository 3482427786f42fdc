"""When to look, what is an alarm, what is the best, and what of it outlives a kill. Looks here are made up."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddx.chart import Chart, figure, ticks
from ddx.watch.alarms import RULES, Alarm, alarms, excesses
from ddx.watch.best import Best, value_of
from ddx.watch.exposure import distance_at
from ddx.watch.history import History
from ddx.watch.pace import Pace
from ddx.watch.page import write_watch_page
from ddx.watch.signals import Signals
from ddx.watch.strip import save_strip
from ddx.watch.words import look_line
from watchdog import WATCHDOG_S

OF_TEACHER = [rule.name for rule in RULES if rule.name != "distance" and not rule.of_method]
RATIOS = [name for name in OF_TEACHER if name != "clipped"]
TEACHER = dict.fromkeys((*OF_TEACHER, "octave_4"), 0.5)
BOUND = {rule.name: rule.bound for rule in RULES}


def look(step: int, **student: float) -> dict[str, Any]:
    drawn = {**TEACHER, "distance": 0.2, **student}
    return {
        "step": step,
        "judged_steps": 1,
        "teacher": TEACHER,
        "student": {"1": drawn, "4": drawn},
        "ode_distance": 0.5,
        "exposure_bias": None,
        "signals": {"loss": 1.0 / (step + 1), "grad_norm": 2.0, "fake_score_grad_norm": 3.0},
        "alarms": [],
        "best": {"step": None, "metric": "distance", "value": None},
    }


def raised(values: list[dict[str, float]], warm_up: int = 0) -> list[str]:
    looks = [look(10 * n, **value) for n, value in enumerate(values)]
    return [alarm.name for alarm in alarms(looks, 1, warm_up)]


def times(name: str, factor: float) -> dict[str, float]:
    return {name: 0.5 * factor}


FAR = {rule.name: math.exp(1.3 * rule.bound) for rule in RULES}


@pytest.mark.parametrize("name", RATIOS)
def test_an_alarm_needs_two_looks_in_a_row_beyond_its_bound_from_the_best(name: str) -> None:
    good, bad = times(name, 1.0), times(name, FAR[name])
    low = times(name, 1.0 / FAR[name])
    assert raised([good, bad]) == []
    assert raised([good, bad, good, bad]) == []
    assert raised([good, bad, bad]) == raised([good, low, low]) == [name]
    assert raised([good, bad, bad, good]) == []
    assert raised([bad, bad, bad]) == []  # off its teacher, but never nearer
    assert raised([bad, bad, good, bad]) == []  # one began blurred, and looked away once
    assert raised([bad, good, times(name, math.exp(0.5 * BOUND[name]))] * 2) == []
    assert raised([good, bad, bad, bad], warm_up=10) == []  # the good one was the warm-up's
    assert raised([bad, good, bad, bad], warm_up=10) == [name]


def test_many_small_signs_or_a_large_one_are_an_alarm_at_one_look() -> None:
    def off(share: float, *names: str) -> dict[str, float]:
        return {name: 0.5 * math.exp(share * BOUND[name]) for name in names}

    three = ("brightness", "saturation", "variety_features")
    assert raised([{}, off(0.8, *three)]) == []  # a norm of 1.39
    assert raised([{}, off(0.9, *three), {}]) == []
    assert len(raised([{}, off(0.9, *three)])) == 1  # of 1.56: the one that leads is named
    assert raised([{}, {**off(0.9, *three), **off(1.1, "contrast")}]) == ["contrast"]
    assert raised([{}, off(1.2, *three)]) == list(three)
    assert raised([{}, off(1.6, "contrast")]) == ["contrast"]
    assert raised([off(1.6, "contrast"), {}]) == raised([off(1.6, "contrast")]) == []


def test_the_words_of_an_alarm_name_number_step_and_cure() -> None:
    looks = [look(0), look(10), *(look(step, saturation=0.8, distance=1.5, clipped=0.9) for step in (20, 30, 40))]
    found = {alarm.name: alarm for alarm in alarms(looks, 1)}
    assert set(found) == {"saturation", "distance", "clipped"}
    assert found["saturation"].reason == "saturation is 1.6 times the teacher's since step 20"
    assert "lower the learning rate or the guidance" in found["saturation"].cure
    assert found["distance"].reason.endswith("is 1.5 since step 20, and was 0.2 at step 0")
    assert found["clipped"].reason == "the share of clipped values is 0.900 since step 20, the teacher's 0.500"
    assert excesses(looks, next(rule for rule in RULES if rule.name == "distance"), 1) == pytest.approx(
        [0, 0, 1.3, 1.3, 1.3]
    )
    with_one = look_line(looks[-1])
    assert "saturation 1.60" in with_one and "distance 1.5" in with_one and "clipped +0.400" in with_one


def test_rows_without_a_loss_and_gradients_that_grow_are_alarms_too() -> None:
    def with_signals(*values: dict[str, float]) -> list[str]:
        return [a.name for a in alarms([{**look(10 * n), "signals": value} for n, value in enumerate(values)], 1)]

    assert with_signals({}, {"dropped": 0.0}, {"dropped": 0.2}) == []
    assert with_signals({}, {"dropped": 0.2}, {"dropped": 0.06}) == ["dropped"]
    assert with_signals({"grad_norm": 1.0}, {"grad_norm": 9.0}, {"grad_norm": 2.0}) == []
    assert with_signals({"fake_score_grad_norm": 1.0}, *[{"fake_score_grad_norm": 9.0}] * 2) == ["fake_score_grad_norm"]
    assert with_signals({"grad_norm": 9.0}, {"grad_norm": 1.0}, {"grad_norm": 1.5}) == []
    assert with_signals({"loss": 1.0}, {"loss": 90.0}, {"loss": 90.0}) == []  # losses say little


def test_a_fake_score_that_falls_behind_is_an_alarm_of_which_the_words_name_the_cure() -> None:
    def with_losses(*values: float | None) -> list[Alarm]:
        signals = [{} if value is None else {"fake_score_loss": value} for value in values]
        return alarms([{**look(10 * n), "signals": some} for n, some in enumerate(signals)], 1)

    assert with_losses(None, 0.9, 0.7, 0.6, 0.8) == []
    assert with_losses(None, 0.6, 0.7, 0.85, 0.85) == []
    assert with_losses(None, 0.6, 0.92, None) == with_losses(None, None) == with_losses(0.0, math.nan, 0.5) == []
    (found,) = with_losses(None, 0.9, 0.6, 0.92, 0.95)
    assert (found.name, found.since) == ("fake_score_loss", 30)
    assert found.reason == "the loss of the fake score is 0.95 since step 30, and was 0.6 at step 20"
    assert found.cure.startswith("update the fake score more often")
    assert with_losses(None, 0.6, 1.2) != []
    sharpens = [look(0, distance=1.0), look(10, distance=0.9), look(20, distance=0.3), look(30, distance=0.3)]
    for seen, loss in zip(sharpens[1:], (0.3, 0.9, 0.9), strict=True):
        seen["signals"] = {"fake_score_loss": loss}
    assert alarms(sharpens, 1) == []  # it has more to learn of sharper pictures


def test_dear_looks_are_fewer_and_all_together_within_their_share() -> None:
    for each, step_seconds, total in ((0.5, 1.0, 1000), (4.0, 1.0, 1000), (60.0, 2.0, 4000), (0.001, 1.0, 300)):
        pace, looks = Pace(50, 0.03, total), 0
        for step in range(total + 1):
            if step:
                pace.trained(step_seconds, 1)
            if pace.due(step):
                pace.looked(step, each)
                looks += 1
        assert pace.last == total and looks >= 2
        assert pace.share is not None and (pace.share <= 0.03 or looks == 2)
        assert looks <= total / 50 + 1
    dear = Pace(50, 0.03, 100)  # the first and the last, whatever they cost
    dear.looked(0, 100.0)
    dear.trained(10.0, 99)
    assert not dear.due(99) and dear.due(100)
    first = Pace(10, 0.03, 100)  # nothing is known yet
    assert first.due(0) and first.interval == 10


def test_a_torn_history_is_read_up_to_the_tear_and_later_looks_are_dropped(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in (0, 10, 20, 30):
        history.add(look(step))
    with history.path.open("a") as file:
        file.write('{"step": 40, "stu')
    again = History(tmp_path)
    again.resume(20)
    assert [line["step"] for line in again.looks] == [0, 10, 20]
    again.add(look(25))
    assert [json.loads(line)["step"] for line in again.path.read_text().splitlines()] == [0, 10, 20, 25]
    again.resume(-1)
    assert again.looks == [] and again.path.read_text() == ""


def test_the_best_is_remembered_with_its_weights_and_by_its_metric(tmp_path: Path) -> None:
    best = Best(tmp_path, "distance", keep=True)
    assert best.weights() is None and best.is_better(3.0)
    assert not any(best.is_better(value) for value in (None, float("nan"), float("inf")))
    best.take(10, 3.0, {"w": torch.ones(2)})
    best.take(20, 1.0, {"w": torch.zeros(2, dtype=torch.bfloat16)})
    assert [path.name for path in tmp_path.glob("*best-*")] == ["best-000020.safetensors"]
    again = Best(tmp_path, "distance", keep=True)
    assert again.as_record() == {"step": 20, "metric": "distance", "value": 1.0}
    assert not again.is_better(1.0) and again.is_better(0.9)
    weights = again.weights()
    assert weights is not None and weights["w"].dtype == torch.bfloat16
    higher = Best(tmp_path, "overall", keep=False)  # another metric begins anew
    assert higher.step is None
    higher.take(30, 0.5, {})
    assert higher.is_better(0.6) and not higher.is_better(0.4) and higher.weights() is None
    assert value_of(look(0), "overall", 1) is None and value_of(look(0), "ode_distance", 1) == 0.5
    (tmp_path / "best.json").write_text("{")
    assert Best(tmp_path, "overall", keep=False).step is None


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from ddx.watch.best import Best

def die(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith({end!r}):
        os.kill(os.getpid(), signal.SIGKILL)

best = Best(Path({folder!r}), "distance", keep=True)
best.take(10, 3.0, {{"w": torch.ones(2)}})
sys.addaudithook(die)
best.take(20, 1.0, {{"w": torch.zeros(2)}})
"""


@pytest.mark.parametrize("end", ["best-000020.safetensors", "best.json"])
def test_killed_while_it_takes_a_better_one_the_former_is_whole(end: str, tmp_path: Path) -> None:
    code = KILLED.format(end=end, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, capture_output=True, timeout=WATCHDOG_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    best = Best(tmp_path, "distance", keep=True)
    weights = best.weights()
    assert best.step == 10 and weights is not None and weights["w"].tolist() == [1.0, 1.0]
    best.take(20, 1.0, {"w": torch.zeros(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-000020.safetensors", "best.json"]
    assert load_file(tmp_path / "best-000020.safetensors")["w"].tolist() == [0.0, 0.0]


def test_signals_are_means_of_the_methods_own_numbers() -> None:
    signals = Signals()
    signals.add({"step": 1, "loss": 1.0, "score_gap": None, "lr": 1e-3, "skipped": 1, "seconds": 3.0})
    signals.add({"step": 2, "loss": 3.0, "score_gap": 0.5, "skipped": 4})
    assert signals.read() == {"loss": 2.0, "score_gap": 0.5, "skipped": 4.0}
    assert signals.read() == {}


def test_exposure_bias_is_the_distance_of_two_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(64, 3, 16, 16, generator=generator)
    shifted = 2.0 * pictures + 1.0
    r = 0.4
    std, other = math.sqrt(0.6**2 + r**2), math.sqrt(1.2**2 + r**2)
    expected = math.sqrt((0.6**2 + (other - std) ** 2) / std**2)
    assert distance_at(r, shifted, pictures) == pytest.approx(expected, rel=0.03)
    assert distance_at(r, pictures, pictures) == 0.0
    assert distance_at(1.0, shifted, pictures) == pytest.approx(0.0, abs=1e-12)  # all noise: nothing of the picture


def test_the_page_holds_curves_alarms_and_pictures_and_refreshes_until_the_end(tmp_path: Path) -> None:
    looks = [look(10 * n, saturation=0.5 if n < 2 else 0.9) for n in range(5)]
    for number, one in enumerate(looks):
        one["alarms"] = [vars(alarm) for alarm in alarms(looks[: number + 1], 1)]
        one["best"] = {"step": 10, "metric": "distance", "value": 0.2}
        save_strip(tmp_path / "watch" / f"step-{one['step']:06d}.jpg", {1: torch.zeros(3, 2, 8, 8, 3).byte()})
    for finished in (False, True):
        page = write_watch_page(tmp_path, tmp_path / "watch", "a <b>", looks, 50, finished=finished).read_text()
        assert ('http-equiv="refresh"' in page) is not finished
    assert "a &lt;b&gt;" in page and "40 of 50 steps. Best by distance: step 10." in page
    assert page.count("<svg") >= 8 and page.count("data:image/jpeg") == 5
    assert 'class="alarm"' in page and "Saturation is 1.8 times" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs no other file
    assert "nan" not in page and "Exposure bias" not in page  # a curve without a point


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 17.0), (0.998, 1.004), (1e-7, 3e-7), (5.0, 40000.0)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and all(low - 1e-9 <= value <= high * (1 + 1e-9) for value in found)


def test_curves_leave_out_what_is_not_finite() -> None:
    assert figure(Chart(title="x", lines={"a": [(0, float("nan"))]})) == ""
    shown = figure(Chart(title="x", lines={"a": [(0, 1.0), (1, float("inf")), (2, 1.0)]}, best=1))
    assert shown.count("<circle") == 2 and "best: step 1" in shown
