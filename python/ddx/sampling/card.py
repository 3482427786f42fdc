"""The model card of a student: what it is, what it was made from, how well it draws, and how to use it without ddx.

The card is a function of the folder alone: run.json, scores.json (written by `ddx evaluate`) and the pipeline's files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddx.metrics.table import shown_metrics
from ddx.sampling.prompts import standard_prompts
from ddx.sampling.sizes import shown_sizes, trained_sizes
from ddx.sampling.snippet import SNIPPET_SEED, literal, lora_snippet, snippet
from ddx.sampling.student import StudentFolder

CARD_NAME = "README.md"
SCORES_NAME = "scores.json"
KERNEL_DECIBELS = 60  # between a picture of our kernels and diffusers' own, in float32; a test holds it

# What the model hub calls the licences that teachers here have.
_HUB_LICENCES = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "creativeml openrail-m": "creativeml-openrail-m",
    "creativeml openrail++-m": "openrail++",
}


def write_card(folder: str | Path, scores: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """Write the card of the student in `folder` and return its path; `scores`, rows of an evaluation, are kept.

    Without `scores` those of the last evaluation stay in the card. Raises what `StudentFolder` raises.
    """
    folder = Path(folder)
    if scores is not None:
        _write_text(folder / SCORES_NAME, json.dumps({"rows": list(scores)}, indent=2) + "\n")
    text = card_text(StudentFolder(folder), read_scores(folder))
    return _write_text(folder / CARD_NAME, text)


def card_prompt(student: StudentFolder) -> str:
    """Return the prompt that the card's snippet draws."""
    return standard_prompts(student.record)[0]


@dataclass(frozen=True, kw_only=True)
class CardPicture:
    """A picture that a card shows: its file, relative to the card, and its prompt."""

    path: str
    prompt: str


def card_text(
    student: StudentFolder,
    scores: Sequence[Mapping[str, Any]] = (),
    pictures: Sequence[CardPicture] = (),
    grid: str | None = None,
) -> str:
    """Return the card: YAML front matter, then Markdown; `pictures` are its gallery on the hub, `grid` a file too."""
    record = student.record
    prompt = card_prompt(student)
    method = str(record.get("method", "unknown"))
    teacher = _teacher_name(record)
    sections = [
        _front_matter(student, pictures),
        f"# {student.name}",
        "<Gallery />" if pictures else "",
        f"A student of **{teacher}** that draws in one to four steps, distilled with `{method}` by ddx. "
        f"It is a plain `{student.pipeline_class}`: diffusers opens it without ddx.",
        f"![The teacher's pictures on top, the student's below, from the same noise]({grid})" if grid else "",
        "## Draw",
        f"Run inside this folder. One step, seed {SNIPPET_SEED}, for the prompt “{prompt}”; it writes `out.png`:",
        f"```python\n{snippet(student, prompt)}\n```",
        f"`ddx sample --student . --steps 1 --seed {SNIPPET_SEED} --prompt {_shell(prompt)}` draws the same picture, "
        + _how_equal(student),
        _more_steps(student),
        _low_rank(student, prompt),
        "## What it was made from",
        _facts(student),
        "## Scores",
        _score_table(scores),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _more_steps(student: StudentFolder) -> str:
    called = {n: student.call_arguments(n) for n in (2, 4)}
    more = {}
    for n, arguments in called.items():
        key = next((key for key in ("sigmas", "timesteps") if key in arguments), None)
        more[n] = "" if key is None else f", {key}={literal(arguments[key])}"
    lines = [f"`num_inference_steps={n}{text}`" for n, text in more.items()]
    folders = student.record.get("step_folders", {})
    if folders:  # the weights are others: a folder each
        lines = [f"open `{folders[str(n)]}` with {line}" for n, line in zip(called, lines, strict=True)]
    return "For two or four steps: " + " or ".join(lines) + ". " + _guidance(student)


def _guidance(student: StudentFolder) -> str:
    """Return what to leave as it is in the call, or what else its guidance may be."""
    ((name, value),) = student.call.guidance(student.guidance).items()
    if not student.call.embedded_guidance:
        return f"Keep `{name}={value}`, which means no second pass: guidance is in the weights."
    trained = student.record.get("guidance_range")
    if trained and trained[0] < trained[1]:
        return f"The network takes `{name}` itself, and was trained with {trained[0]:g} to {trained[1]:g}."
    return f"Keep `{name}={value}`: the network takes it itself, and was trained with no other."


def _how_equal(student: StudentFolder) -> str:
    if not (student.family and student.family.has_kernels):
        return "bit for bit on the same device."
    return (
        "bit for bit on a processor, and on a GPU with `DDX_KERNELS=torch`. Without that ddx runs kernels of its own "
        f"on a GPU, which round differently: in float32 the two agree to {KERNEL_DECIBELS} dB or better."
    )


def _low_rank(student: StudentFolder, prompt: str) -> str:
    """Return the section on the files for other programs, empty for a student without low-rank matrices."""
    from ddx.networks.lora_header import COMFYUI_FILE, DIFFUSERS_FILE, diffusers_config

    config = diffusers_config(student.folder)
    if config is None:
        return ""
    scale, trained = student.guidance, student.record.get("guidance_range")
    held = "" if scale is None else f", at guidance {scale:g}"
    if scale is not None and trained and trained[0] < trained[1]:
        held += f" of the {trained[0]:g} to {trained[1]:g} that were trained"
    holds = f"`{DIFFUSERS_FILE}` holds what the student adds to its teacher, in rank {config['r']}{held}."
    sentences = [
        f"{holds} Put onto that teacher, and no other, it draws the same picture but for rounding:",
        f"```python\n{lora_snippet(student, prompt)}\n```",
    ]
    if student.family and not student.family.loads_lora:
        sentences = [f"{holds} diffusers' {student.pipeline_class} has no loader for it; peft reads it."]
    notes = []
    folders = [f"`{name}`" for name in student.record.get("step_folders", {}).values() if name != "."]
    if folders:
        notes.append(f"The files for more steps lie in {' and '.join(folders)}.")
    if config["lora_bias"] and len(sentences) > 1:
        notes.append(
            "A part of it is a bias, which peft adds but does not merge: instead of `fuse_lora()` open this folder, "
            "whose pipeline is the merged one."
        )
    if student.family:
        fed = ""
        if student.call.embedded_guidance and scale is not None:
            fed = f" and the guidance that the network takes at {scale:g}"
        notes.append(
            f"`{COMFYUI_FILE}` is the same for {student.family.lora_programs}; draw with a guidance (cfg) of 1{fed}."
        )
    return "\n\n".join(["## Onto the teacher", *sentences, " ".join(notes)])


def _facts(student: StudentFolder) -> str:
    record = student.record
    guidance = student.guidance
    rows = [
        ("teacher", _teacher_name(record)),
        ("teacher's revision", record.get("teacher_revision")),
        ("teacher's licence", _licence(record)),
        ("method", _method(record)),
        ("average of", _average_of(record)),
        (
            "guidance" if student.call.embedded_guidance else "guidance in the weights",
            None if guidance is None else f"{guidance:g}",
        ),
        ("draws at", ", ".join(f"{time:g}" for time in student.own_times)),
        ("resolution", f"{student.resolution} × {student.resolution} pixels"),
        ("trained at", shown_sizes(record) if len(trained_sizes(record)) > 1 else None),
        ("reward", _reward(record)),
        ("data", record.get("source") or _data_name(record)),
        ("images seen", _thousands(record.get("images_seen"))),
        ("skipped steps", _skipped(record)),
        ("stopped early by", record.get("stopped")),
        ("weights", _weights(student)),
        ("training time", _seconds(record.get("seconds"))),
        ("seed", record.get("seed")),
        ("saved in", student.component_dtypes()[next(reversed(student.component_dtypes()))]),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items() if k != "platform")),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows if value not in (None, "")]
    return "\n".join(["| | |", "|---|---|", *lines])


def _weights(student: StudentFolder) -> str | None:
    """Return which weights these are, where a run has kept its best ones too."""
    best = student.record.get("best")
    if not isinstance(best, dict):
        return None
    what = f"step {best['step']}, the best by {best['metric']} ({best['value']:.3g})"
    if student.folder.name == "best":
        return f"those of {what}; the folder above has those of the last step"
    if not (student.folder / "best" / "model_index.json").is_file():
        return f"those of the last step; the best look was at {what}, and was not kept"
    return f"those of the last step; `best/` has those of {what}"


def _reward(record: Mapping[str, Any]) -> str | None:
    """Return the scorer that rewarded the student, if one did."""
    if not record.get("reward"):
        return None
    revision = record.get("reward_revision")
    return f"`{record['reward']}`{f' at {revision}' if revision else ''}, weight {record['reward_weight']:g}"


def _average_of(record: Mapping[str, Any]) -> str | None:
    """Return the students whose weights were averaged, with their shares."""
    of = record.get("average_of")
    return None if not of else ", ".join(f"{Path(str(one['student'])).name} ({one['share']:.3g})" for one in of)


def _score_table(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return "Not evaluated yet: `ddx evaluate --student .` fills this table."
    shown = [metric for metric in shown_metrics(scores) if metric.on_card]
    lines = [
        "| model | steps | " + " | ".join(metric.title for metric in shown) + " |",
        "|---|" + "---:|" * (len(shown) + 1),
    ]
    for row in scores:
        cells = " | ".join(metric.text(row.get(metric.name)) for metric in shown)
        lines.append(f"| {row.get('model')} | {row.get('steps')} | {cells} |")
    return "\n".join(lines)


def _front_matter(student: StudentFolder, pictures: Sequence[CardPicture]) -> str:
    import yaml

    from ddx.networks.lora_header import diffusers_config

    record = student.record
    licence = str(record.get("teacher_licence", "unknown"))
    hub_licence = _HUB_LICENCES.get(licence.lower(), "other")
    matter: dict[str, Any] = {"license": hub_licence}
    if hub_licence == "other":
        matter["license_name"] = licence
    matter |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    source = str(record.get("teacher_source", ""))
    if "/" in source and not source.startswith("/"):
        matter["base_model"] = source
        matter["base_model_relation"] = "finetune" if diffusers_config(student.folder) is None else "adapter"
    matter["tags"] = ["ddx", "distillation", "few-step", str(record.get("method", "unknown"))]
    if pictures:
        matter["widget"] = [{"text": picture.prompt, "output": {"url": picture.path}} for picture in pictures]
    return "---\n" + yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).strip() + "\n---"


def _licence(record: Mapping[str, Any]) -> str:
    licence = str(record.get("teacher_licence", "unknown"))
    return licence if licence == "unknown" else f"{licence}, which covers this student too"


def _teacher_name(record: Mapping[str, Any]) -> str:
    name, source = str(record.get("teacher", "unknown")), str(record.get("teacher_source", ""))
    if name.startswith(("/", ".", "~")):
        name = Path(name).name
    return f"{name} ({source})" if "/" in source and not source.startswith("/") and source != name else name


def _method(record: Mapping[str, Any]) -> str | None:
    from ddx.methods.registry import METHODS

    name = record.get("method")
    return f"{name}: {METHODS[name].paper}" if name in METHODS else name


def _data_name(record: Mapping[str, Any]) -> str | None:
    store = record.get("store")
    return None if not store else Path(str(store)).name


def _thousands(number: Any) -> str | None:
    return None if number is None else f"{int(number):,}"


def _skipped(record: Mapping[str, Any]) -> str | None:
    skipped, steps = record.get("skipped_steps"), record.get("config", {}).get("train_steps")
    return f"{skipped} of {steps}: their gradient was not finite" if skipped else None


def _seconds(seconds: Any) -> str | None:
    return None if seconds is None else f"{float(seconds):,.0f} s"


def _shell(text: str) -> str:
    import shlex

    return shlex.quote(text) if '"' in text or "$" in text or "`" in text else f'"{text}"'


def read_scores(folder: Path) -> list[Mapping[str, Any]]:
    """Return the rows of the last evaluation of the student in `folder`, none without one."""
    try:
        rows = json.loads((folder / SCORES_NAME).read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def _write_text(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
