"""`index.html` of a run that is watched: its state, alarms, curves, and the pictures of its looks. It needs no file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddx.chart import STYLE, Chart, Point, figure
from ddx.page import write_page
from ddx.watch.vector import ratio

FILE_NAME = "index.html"
REFRESH_S = 20
MAX_STRIPS = 16
Look = Mapping[str, Any]

_RATIOS = (
    ("brightness", "Brightness", "mean luma"),
    ("contrast", "Contrast", "standard deviation of luma"),
    ("saturation", "Saturation", "of HSV, weighted by value"),
    ("variety_features", "Variety", "mean distance between the seeds of a prompt, in features"),
)
_MORE_STYLE = """
.alarms { border: 1px solid #d23c3c; border-radius: 8px; padding: .7rem 1rem; margin: 0 0 1.4rem; }
.alarms p { margin: .2rem 0; } .alarms small { color: var(--soft); }
.quiet { color: var(--soft); margin: 0 0 1.4rem; }
.strip { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.strip img { width: auto; }
"""


def write_watch_page(
    folder: Path, strips: Path, title: str, looks: Sequence[Look], total: int, *, finished: bool
) -> Path:
    """Write `folder`/index.html from the looks of a run of `total` steps, and from the pictures in `strips`.

    Until `finished` it loads itself again every twenty seconds. Returns its path.
    """
    last = looks[-1]
    best = last["best"]["step"]
    steps = str(last["judged_steps"])
    raised = {name: frozenset(at) for name, at in _raised(looks).items()}

    def of_ratio(name: str) -> dict[str, Sequence[Point]]:
        counts = last["student"]
        return {
            _steps(n): [(x["step"], ratio(x["student"][n][name], x["teacher"][name])) for x in looks] for n in counts
        }

    charts = [
        Chart(
            title="Distance",
            note="to the teacher's pictures, in features: 0 where they cannot be told apart",
            lines={
                _steps(n): [(look["step"], look["student"][n]["distance"]) for look in looks] for n in last["student"]
            },
            reference=0.0,
            best=best,
            alarms=raised.get("distance", frozenset()),
        ),
        *(
            Chart(
                title=heading,
                note=f"{note}; times the teacher's",
                lines=of_ratio(name),
                reference=1.0,
                best=best,
                alarms=raised.get(name, frozenset()),
            )
            for name, heading, note in _RATIOS
        ),
        Chart(
            title="Detail",
            note=f"amplitude of luma by octave, the finest first, in {_steps(steps)}; times the teacher's",
            lines={
                f"octave {k}": [
                    (x["step"], ratio(x["student"][steps][f"octave_{k}"], x["teacher"][f"octave_{k}"])) for x in looks
                ]
                for k in range(1, 6)
            },
            reference=1.0,
            best=best,
            alarms=frozenset().union(*(at for name, at in raised.items() if name.startswith("octave"))),
        ),
        Chart(
            title="Clipped",
            note="share of values at 0 or 255",
            lines={
                _steps(n): [(look["step"], look["student"][n]["clipped"]) for look in looks] for n in last["student"]
            },
            reference=last["teacher"]["clipped"],
            best=best,
            alarms=raised.get("clipped", frozenset()),
        ),
        *_marks(looks, best),
    ]
    state = "finished" if finished else "training"
    shown_best = "" if best is None else f" Best by {last['best']['metric']}: step {best}."
    lead = f"{state.capitalize()}: {last['step']} of {total} steps.{shown_best}"
    body = (
        f"<style>{STYLE}{_MORE_STYLE}</style>\n{_alarm_box(looks)}"
        f'<h2>Pictures against the teacher\'s</h2>\n<div class="plots">{_figures(charts)}</div>\n'
        f'<h2>Signals of the method</h2>\n<div class="plots">{_figures(_signals(looks))}</div>\n'
        f'<h2>Looks</h2>\n<div class="strip">{_strips(strips, looks, best)}</div>'
    )
    facts = {"judged in": _steps(steps), "looks": str(len(looks))}
    return write_page(folder / FILE_NAME, title, lead, body, facts, refresh_s=None if finished else REFRESH_S)


def _marks(looks: Sequence[Look], best: int | None) -> Iterable[Chart]:
    """Yield the checker's marks, where prompts are scenes, and how far the student is from the teacher's ODE."""
    last = looks[-1]
    if "overall" in last["teacher"]:
        lines = {_steps(n): [(x["step"], x["student"][n]["overall"]) for x in looks] for n in last["student"]}
        note = "share of pictures in which all holds that the caption says"
        yield Chart(title="Overall", note=note, lines=lines, reference=last["teacher"]["overall"], best=best)
    ode = [(look["step"], _number(look.get("ode_distance"))) for look in looks]
    note = "from the end of the teacher's ODE from the same noise, in latents; not every method aims at it"
    yield Chart(title="ODE distance", note=note, lines={"one step": ode}, best=best)
    bias = [(look["step"], _number(look.get("exposure_bias"))) for look in looks]
    note = "of the states at the second step, from those of the teacher's pictures"
    yield Chart(title="Exposure bias", note=note, lines={"second step": bias}, best=best)


def _signals(looks: Sequence[Look]) -> Iterable[Chart]:
    """Yield a chart for each kind of signal: losses, norms, score gaps by time, shares."""
    names = list(dict.fromkeys(name for look in looks for name in look["signals"]))
    kinds: dict[str, list[str]] = {}
    for name in names:
        kind = next((kind for kind in ("grad_norm", "score_gap_t", "dropped") if kind in name), name)
        kinds.setdefault(kind, []).append(name)
    raised = _raised(looks)
    titles = {"grad_norm": "Gradient norms", "score_gap_t": "Score gap by time", "dropped": "Dropped rows"}
    for kind, members in kinds.items():
        lines = {name: [(look["step"], _number(look["signals"].get(name))) for look in looks] for name in members}
        if any(value for points in lines.values() for _, value in points if value == value):  # not all of them 0
            alarms = frozenset().union(*(raised.get(name, ()) for name in members))
            yield Chart(title=titles.get(kind, kind.replace("_", " ").capitalize()), lines=lines, alarms=alarms)


def _raised(looks: Sequence[Look]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for look in looks:
        for alarm in look["alarms"]:
            found.setdefault(alarm["name"], []).append(look["step"])
    return found


def _alarm_box(looks: Sequence[Look]) -> str:
    now = looks[-1]["alarms"]
    earlier = [name for name in _raised(looks) if name not in {alarm["name"] for alarm in now}]
    gone = f"<p><small>Earlier: {html.escape(', '.join(earlier))}.</small></p>" if earlier else ""
    if not now:
        return f'<div class="quiet">No alarm at the last look.{gone}</div>\n'
    lines = (_line(alarm["reason"], alarm["cure"]) for alarm in now)
    return f'<div class="alarms">{"".join(lines)}{gone}</div>\n'


def _line(reason: str, cure: str) -> str:
    return f"<p><b>{html.escape(reason[:1].upper() + reason[1:])}.</b> <small>{html.escape(cure)}</small></p>"


def _strips(strips: Path, looks: Sequence[Look], best: int | None) -> str:
    """Return the pictures, the newest first: of many looks some, the first and the best among them."""
    steps = [int(look["step"]) for look in looks]
    if len(steps) > MAX_STRIPS:
        evenly = {steps[round(k * (len(steps) - 1) / (MAX_STRIPS - 1))] for k in range(MAX_STRIPS)}
        steps = sorted(evenly | ({best} if best in steps else set()))
    counts = " and ".join(_steps(n) for n in looks[-1]["student"])
    found = [_strip(strips / "teacher.jpg", "the teacher")]
    for step in reversed(steps):
        mark = ", the best" if step == best else ""
        found.append(_strip(strips / f"step-{step:06d}.jpg", f"step {step}{mark}, drawn in {counts}"))
    return "\n".join(found)


def _strip(path: Path, caption: str) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = html.escape(caption)
    return f'<figure><figcaption>{text}</figcaption><img src="data:image/jpeg;base64,{data}" alt="{text}"></figure>'


def _figures(charts: Iterable[Chart]) -> str:
    return "\n".join(figure(chart) for chart in charts)


def _steps(count: str) -> str:
    return f"{count} step" if count == "1" else f"{count} steps"


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
