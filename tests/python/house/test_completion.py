"""Completion: what the shell is offered, through bash itself, and without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ddx.cli import main
from ddx.run_record import write_run

CASES = {
    "ddx dis": ["distill"],
    "ddx distill --meth": ["--method"],
    "ddx distill --method sh": ["shortcut"],
    "ddx distill --method=sid": ["sid", "sid-lsg", "sida"],
    "ddx distill --dtype=": ["auto", "float32", "bf16", "fp16"],
    "ddx distill --teacher sana-6": ["sana-600m", "sana-600m-1024"],
    "ddx distill --teacher made": ["runs/teachers/made"],
    "ddx distill --dtype ": ["auto", "float32", "bf16", "fp16"],
    # --alpha is sid's own, which needs torch to know
    "ddx distill --method sid --alpha 1 --tea": ["--teacher", "--teacher-base"],
    "ddx distill --data ": ["runs/data/a-sana-tiny-64.zarr"],
    "ddx distill --workspace other --data ": ["other/data/b-sana-tiny-64.zarr"],
    "ddx distill --set learn": ["learning_rate="],
    "ddx sample --student tiny": ["runs/students/tiny-lcm"],
    "ddx list te": ["teachers"],
    "ddx bench kernels --ahead ": ["80", "90"],
    "ddx inspect ": ["runs/data/a-sana-tiny-64.zarr", "runs/students/tiny-lcm"],
    "ddx run one": ["one-step"],
    "ddx precompute --retry time": ["timeout"],
    "ddx xyzzy ": [],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two workspaces and `ddx` on the path."""
    for name, root in (("a", "runs"), ("b", "other")):
        store = tmp_path / root / "data" / f"{name}-sana-tiny-64.zarr"
        store.mkdir(parents=True)
        (store / "zarr.json").write_text(json.dumps({"attributes": {"ddx": {"teacher": "sana-tiny"}}}))
    write_run(tmp_path / "runs/students/tiny-lcm", {"kind": "student"}, finished=True)
    (tmp_path / "runs/teachers/made").mkdir(parents=True)
    (tmp_path / "runs/teachers/made/model_index.json").write_text("{}")
    program = tmp_path / "bin/ddx"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ddx.cli.main "$@"\n')
    program.chmod(0o755)
    return tmp_path


def environment(place: Path, **more: str) -> Mapping[str, str]:
    return {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "DDX_WORKSPACE": "runs", **more}


def test_bash_offers_what_fits(place: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None, "the test of completion needs bash"
    script = place / "complete.sh"
    lines = ['eval "$(ddx completion bash)" || exit 1']
    for line in CASES:
        words = line.replace("=", " = ").rstrip("= ").split(" ")  # bash splits at =, too
        words += ["="] * line.endswith("=") + [""] * line.endswith(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(f"COMPREPLY=(); COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _ddx_completion ddx")
        lines.append("printf '%s ' \"${COMPREPLY[@]}\"; echo")
    script.write_text("\n".join(lines))
    found = subprocess.run(
        [bash, "--norc", "-i", str(script)],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment(place),
        check=True,
    )
    offered = dict(zip(CASES, [line.split() for line in found.stdout.splitlines()], strict=True))
    first = {line: words[: len(CASES[line])] for line, words in offered.items()}
    assert first == CASES
    assert {line for line in CASES if offered[line] != CASES[line]} == {"ddx inspect "}  # teachers follow


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert f"_DDX_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_paths_are_left_to_the_shell(place: Path) -> None:
    for line, kind in (
        ("precompute lai", "file"),
        ("distill --teacher ./some", "dir"),
        ("sample --prompts pro", "file"),
    ):
        words = f"ddx {line}"
        done = subprocess.run(
            ["ddx"],
            capture_output=True,
            text=True,
            cwd=place,
            env=environment(
                place, _DDX_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1)
            ),
            check=True,
        )
        assert done.stdout.split(",")[0] == kind, line


def test_completing_imports_no_torch(place: Path) -> None:
    script = """
import sys
from ddx.cli import main
try:
    main.run([])
finally:
    print([name for name in ("torch", "diffusers", "numpy", "pyarrow", "zarr", "yaml", "rich") if name in sys.modules])
"""
    words = "ddx distill --method sid --teacher sana"
    asked = environment(place, _DDX_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="5")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=place, env=asked)
    assert done.stdout.splitlines()[0] == "plain,sana-600m" and done.stdout.splitlines()[-1] == "[]", done.stderr
