"""The command line as a new user meets it: fast help, documented commands, mistakes that are understood."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ddx.cli import main
from ddx.cli.main import COMMANDS, group
from ddx.run_record import write_run

HEAVY = ("torch", "diffusers", "transformers", "numpy", "pyarrow", "zarr", "rich", "yaml")


def loaded_command(name: str) -> click.Command:
    """A command by what is typed behind `ddx`: `distill`, `bench kernels`."""
    first, *rest = name.split()
    command: click.Command = importlib.import_module(f"ddx.cli.{first}").command
    for word in rest:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def leaves() -> list[str]:
    """Every command that does something; a group only holds others."""
    found = []
    for name in COMMANDS:
        command = loaded_command(name)
        found += [f"{name} {word}" for word in command.commands] if isinstance(command, click.Group) else [name]
    return found


def help_text(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run([*name.split(), "--help"]) == 0
    return capsys.readouterr().out


def last_lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The error line and the hint line, which must be the last."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    error, hint = lines[-2], lines[-1]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error, hint


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["distill", "--help"], ["bench", "kernels", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from ddx.cli import main
code = main.run({arguments!r})
assert code == 0, code
print("LOADED", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    allowed = "yaml" if arguments[0] in COMMANDS else ""  # the workspace's own defaults
    loaded = re.findall(r"'(\w+)'", done.stdout.split("LOADED")[1])
    assert set(loaded) <= {allowed}


def test_the_package_runs_as_a_module_for_launchers_that_take_one() -> None:
    done = subprocess.run([sys.executable, "-m", "ddx", "--verson"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --version?" in done.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_list_of_commands_repeats_their_docstrings(name: str) -> None:
    assert (loaded_command(name).help or "").strip().splitlines()[0] == COMMANDS[name]


@pytest.mark.parametrize("name", sorted({*COMMANDS, *leaves()}))
def test_every_command_is_documented(name: str, capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    command = loaded_command(name)
    if not isinstance(command, click.Group):
        assert f"`ddx {name}" in (repository / "docs" / "cli.md").read_text(), "docs/cli.md lists every command"
    shown = help_text(name, capsys)
    assert re.search(r"^\s*Examples?\b", shown, re.MULTILINE), f"ddx {name} --help ends without an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"ddx {name} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("name", sorted({*COMMANDS, *leaves()}))
def test_examples_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every example line in a command's help names real commands and real flags."""
    lines = [line.strip() for line in help_text(name, capsys).split("Example")[-1].splitlines()]
    examples = [line for line in lines if line.startswith("ddx ")]
    assert examples, f"ddx {name} --help shows no example command"
    for example in examples:
        _, command, *rest = re.split(r"\s+", example.split("#")[0].strip())
        assert command in COMMANDS, example
        if isinstance(loaded_command(command), click.Group):
            command, *rest = f"{command} {rest[0]}", *rest[1:]
        known = {flag for p in loaded_command(command).params for flag in (*p.opts, *p.secondary_opts)}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{word} in: {example}"


@pytest.mark.parametrize("name", leaves())
def test_shared_flags_are_everywhere(name: str) -> None:
    flags = {flag for p in loaded_command(name).params for flag in p.opts}
    assert {"--workspace", "--json", "--quiet", "--debug"} <= flags


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["distil"], "there is no command `distil`", "did you mean `ddx distill`?"),
        (["xyzzy"], "there is no command `xyzzy`", "`ddx --help`"),
        (["list", "teacher"], "'teacher' is not one of methods, teachers", "did you mean `ddx list teachers`?"),
        (["doctor", "--quite"], "ddx doctor has no option --quite", "did you mean --quiet?"),
        (["bench", "kernel"], "there is no command `kernel`", "did you mean `ddx bench kernels`?"),
        (["bench", "xyzzy"], "there is no command `xyzzy`", "`ddx bench --help`"),
        (["bench", "kernels", "--ahed", "90"], "ddx bench kernels has no option --ahed", "did you mean --ahead?"),
        (["run"], "ddx run needs PIPELINE.yaml", "for example `ddx run pipeline.yaml --dry-run`"),
        (["completion"], "ddx completion needs one of bash, zsh, fish", "ddx completion"),
        (["run", "no.yaml"], "no config file no.yaml", "YAML"),
        (["sample", "--prompt"], "Option '--prompt' requires an argument", "`ddx sample --help`"),
        (["--lr", "3"], "ddx has no option --lr", "options stand behind a command"),
        (["inspect", __file__], "is a file and not a store", "ddx precompute"),
        (["sample", "--student", __file__], "is a file, and a student is the folder", "ddx list students"),
        (["run", "/bin/true"], "cannot read /bin/true: it is not text", "YAML"),
        (["--verson"], "ddx has no option --verson", "did you mean --version?"),
        (["distill", "--bach-size", "3"], "no option --bach-size", "did you mean --batch-size?"),
        (["distill", "--set", "batchsize=3"], "unknown key `batchsize`", "did you mean `batch_size`?"),
        (["distill", "--method", "lcmm"], "lcmm", "lcm"),
        (["distill", "--method", "sid", "--alhpa", "1"], "no option --alhpa", "did you mean --alpha?"),
        (
            ["distill", "--method", "sid", "--solver-steps", "3"],
            "a setting of lcm, pcm, reflow, not of sid",
            "--method lcm",
        ),
        (["distill", "--set", "method=scm", "--jpv", "dual"], "no option --jpv", "did you mean --jvp?"),
    ],
)
def test_typing_mistakes(arguments: list[str], error: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    error_line, hint_line = last_lines(capsys)
    assert error in error_line
    assert hint in hint_line


def test_list_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "lcm" in [row["name"] for row in listed["methods"]]
    assert {"sana-600m", "sana-tiny", "sd15"} <= {row["name"] for row in listed["teachers"]}
    assert listed["stores"] == listed["students"] == []


def test_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["doctor", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["Rust core"]["ok"], findings["Rust core"]
    assert {"torch", "workspace", "kernels, cpu", "Hugging Face cache"} <= set(findings)


def test_interrupt_and_bugs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> None:
        def callback() -> None:
            raise error

        monkeypatch.setattr(group, "get_command", lambda ctx, name: click.Command("list", callback=callback))

    raising(KeyboardInterrupt())
    assert main.run(["list"]) == 130
    assert last_lines(capsys)[0] == "error: interrupted"
    raising(OSError(28, "No space left on device", "/data/x"))
    assert main.run(["list"]) == 1
    assert "/data/x: No space left on device" in last_lines(capsys)[0]
    raising(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        main.run(["list"])


def test_broken_pipe_is_quiet(tmp_path: Path) -> None:
    script = f"{sys.executable} -m ddx.cli.main list | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "named", [["--method", "sid"], ["--method=sid"], ["--set", "method=sid"], ["--config", "settings.yaml"]]
)
def test_a_method_that_is_named_anywhere_shows_its_settings(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_text("method: sid\n")
    monkeypatch.chdir(tmp_path)
    assert main.run(["distill", *named, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Settings of sid:" in shown and "--alpha" in shown and "--solver-steps" not in shown
    assert main.run(["distill", "--help"]) == 0
    assert "--alpha" not in capsys.readouterr().out


def test_a_command_says_what_it_loads_before_torch_is_imported(tmp_path: Path) -> None:
    """Nothing else is on the screen for the seconds that it takes; --quiet keeps it silent."""
    folder = tmp_path / "students/mine"
    write_run(folder, {"kind": "student", "resolution": 64}, finished=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer").mkdir()
    commands = {
        "sample": f"loading the student {folder}",
        "evaluate --teacher sana-tiny": "loading the teacher sana-tiny",
        "precompute a.parquet --teacher sana-tiny": "loading the teacher sana-tiny",
        "distill --method sid": "loading the method sid",
        "prepare --teacher sana-tiny": "loading the teacher sana-tiny",
        "train": "loading torch and diffusers",
        "bench kernels": "loading torch and the kernels",
        "bench step": "loading torch, diffusers and the kernels",
        "doctor": "loading torch",
        "run one-step": "loading the methods",
        "distill --quiet": None,
        "sample --quiet": None,
    }
    script = f"""
import contextlib, importlib.abc, io, json, sys
from ddx.cli import main

class Torch(BaseException):
    pass

class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("torch", "diffusers", "transformers"):
            raise Torch

sys.meta_path.insert(0, Stop())
said = {{}}
for line in {list(commands)!r}:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.suppress(Torch):
        said[line] = ["it ended", main.run([*line.split(), "--workspace", {str(tmp_path)!r}])]
    said[line] = err.getvalue().splitlines()
print(json.dumps(said))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])
    assert {line: lines[:1] for line, lines in said.items()} == {
        line: [f"{text} …"] if text else [] for line, text in commands.items()
    }
