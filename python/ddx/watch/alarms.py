"""Alarms: what a student draws moves away from its teacher and from its own best, over several looks.

For a watched number m of the student and m* of the teacher, the deviation at a look is

    dev = |log(m / m*)|        ratios: brightness, contrast, saturation, octaves, variety
    dev = |m - m*|             shares: clipped
    dev = m                    the distance to the teacher's pictures
    dev = log m                the loss of the fake score, a signal of the method

and its excess is dev less the smallest one of the run so far. An alarm needs an excess above its bound at `LOOKS` looks
in a row; or the excesses of one look, each over its bound, together of a norm above `TOGETHER`. So what is lost between
two looks is told of at the next, and many small signs count as one large one. A student that begins blurred, or that
settles a little off its teacher, raises none; one that was nearer and leaves does. Looks in the warm-up do not count.

The bounds and `TOGETHER` are set above what those runs of `benchmarks/collapses.py` reach that were not lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddx.watch.vector import ratio

LOOKS, TOGETHER = 2, 1.4
Look = Mapping[str, Any]

_RATE = "lower the learning rate or the guidance"
_VARIETY = "lower the weight of the adversarial loss or the guidance, or update the fake score more often"
_BEHIND = "update the fake score more often or at a higher rate, or lower the student's rate"
_SHARP = "lower the learning rate, or raise the half-life of the average"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When one watched number is an alarm: its excess is above `bound`. `low` and `high`: what it then says, and cure.

    `title` names the number in words. `of_method`: it is a signal of the method, which a look may lack.
    """

    name: str
    title: str
    bound: float
    cure_low: str = _RATE
    cure_high: str = _RATE
    of_method: bool = False


RULES: tuple[Rule, ...] = (
    Rule(name="brightness", title="brightness", bound=0.2),
    Rule(name="contrast", title="contrast", bound=0.3),
    Rule(name="saturation", title="saturation", bound=0.3),
    Rule(name="clipped", title="the share of clipped values", bound=0.05),
    Rule(name="octave_1", title="the finest detail", bound=0.4, cure_low=_SHARP, cure_high=_SHARP),
    Rule(name="octave_2", title="fine detail", bound=0.4, cure_low=_SHARP, cure_high=_SHARP),
    Rule(name="octave_3", title="detail of middle size", bound=0.3),
    Rule(name="octave_5", title="coarse structure", bound=0.3),
    Rule(name="variety_features", title="variety over the seeds of a prompt", bound=0.38, cure_low=_VARIETY),
    Rule(name="variety_pixels", title="variety over the seeds of a prompt, in pixels", bound=0.35, cure_low=_VARIETY),
    Rule(name="distance", title="the distance to the teacher's pictures", bound=0.3),
    # it falls as the student settles, and grows where its pictures leave faster than the fake score follows
    Rule(
        name="fake_score_loss",
        title="the loss of the fake score",
        bound=math.log(1.5),
        cure_high=_BEHIND,
        of_method=True,
    ),
)


# Of the signals of the method: by the end of their names, the bound at two looks in a row, and what it says.
DROPPED = 0.05  # share of rows whose loss is not finite
GRADIENT = math.log(5.0)  # of a network's gradient norm over its smallest mean of a look


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One alarm: the rule's name, the step of the first of the looks that raise it, why, and what may help."""

    name: str
    since: int
    reason: str
    cure: str


def deviations(looks: Sequence[Look], rule: Rule, steps: int) -> list[float]:
    """Return dev of each look for the number of `rule`, as the student draws in `steps`; nan where it has none."""
    found = []
    for look in looks:
        value = _value(look, rule, steps)
        if rule.of_method:
            found.append(math.log(value) if value > 0.0 else math.nan)
        elif rule.name == "distance":
            found.append(value)
        elif rule.name == "clipped":
            found.append(abs(value - look["teacher"][rule.name]))
        else:
            found.append(abs(math.log(ratio(value, look["teacher"][rule.name]))))
    return found


def _value(look: Look, rule: Rule, steps: int) -> float:
    if rule.of_method:
        return float(look["signals"].get(rule.name, math.nan))
    return float(look["student"][str(steps)][rule.name])


def excesses(looks: Sequence[Look], rule: Rule, steps: int) -> list[float]:
    """Return how far dev of each look is above the smallest one up to then; 0 where it has none.

    Of a signal of the method the smallest one counts since the pictures were nearest to the teacher's: while a student
    sharpens, its fake score has more to learn.
    """
    found, least, nearest = [], math.inf, math.inf
    for look, value in zip(looks, deviations(looks, rule, steps), strict=True):
        if rule.of_method and (distance := _distance(look, steps)) < nearest:
            nearest, least = distance, math.inf
        least = least if math.isnan(value) else min(least, value)
        found.append(0.0 if math.isnan(value) else value - least)
    return found


def _distance(look: Look, steps: int) -> float:
    return float(look["student"][str(steps)]["distance"])


def alarms(
    looks: Sequence[Look],
    steps: int,
    warm_up: int = 0,
    rules: Sequence[Rule] = RULES,
    together: float = TOGETHER,
) -> list[Alarm]:
    """Return the alarms at the last of the looks, those of the first `warm_up` steps left out.

    Where all excesses together raise one, it names the measures that are above their bounds, at least the one furthest.
    """
    looks = [look for look in looks if look["step"] >= warm_up]
    if not looks:
        return []
    parts = {rule.name: [value / rule.bound for value in excesses(looks, rule, steps)] for rule in rules}
    now = {name: values[-1] for name, values in parts.items()}
    first = max(now, key=now.__getitem__) if math.hypot(*now.values()) > together else None
    found = []
    for rule in rules:
        streak = next((n for n, value in enumerate(reversed(parts[rule.name])) if value <= 1.0), len(looks))
        if streak >= LOOKS or rule.name == first or (first is not None and streak):
            found.append(_alarm(rule, looks, looks[len(looks) - max(streak, 1)], steps))
    return [*found, *_signal_alarms(looks)]


def _signal_alarms(looks: Sequence[Look]) -> list[Alarm]:
    """Return the alarms by the method's own signals: rows without a loss, and gradients that grow many times."""
    found = []
    for name in dict.fromkeys(name for look in looks for name in look["signals"]):
        seen = [(int(look["step"]), float(look["signals"][name])) for look in looks if name in look["signals"]]
        if len(seen) < LOOKS:
            continue
        since, least = seen[-LOOKS][0], min(value for _, value in seen[-LOOKS:])
        if name.endswith("dropped") and least > DROPPED:
            reason = f"{least:.2g} of the rows have had no finite loss ({name}) since step {since}"
            cure = "lower the learning rate, or compute in float32 (--dtype)"
        elif name.endswith("grad_norm") and least > math.exp(GRADIENT) * min(value for _, value in seen) > 0.0:
            reason = f"{name} is {least:.3g} since step {since}, and was {min(value for _, value in seen):.3g}"
            cure = "lower the learning rate"
        else:
            continue
        found.append(Alarm(name=name, since=since, reason=reason, cure=cure))
    return found


def _alarm(rule: Rule, looks: Sequence[Look], first: Look, steps: int) -> Alarm:
    now, since = _value(looks[-1], rule, steps), int(first["step"])
    if rule.of_method or rule.name == "distance":
        nearest = min(range(len(looks)), key=lambda number: _distance(looks[number], steps))
        own = looks[nearest:] if rule.of_method else looks
        seen = [(_value(look, rule, steps), int(look["step"])) for look in own]
        least, at = min((value, step) for value, step in seen if not math.isnan(value))
        reason = f"{rule.title} is {now:.3g} since step {since}, and was {least:.3g} at step {at}"
        return Alarm(name=rule.name, since=since, reason=reason, cure=rule.cure_high)
    theirs = looks[-1]["teacher"][rule.name]
    cure = rule.cure_high if now >= theirs else rule.cure_low
    if rule.name == "clipped":
        reason = f"{rule.title} is {now:.3f} since step {since}, the teacher's {theirs:.3f}"
    else:
        reason = f"{rule.title} is {ratio(now, theirs):.2g} times the teacher's since step {since}"
    return Alarm(name=rule.name, since=since, reason=reason, cure=cure)
