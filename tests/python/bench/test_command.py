"""`ddx bench kernels` on a machine without a GPU, and the script that writes the committed result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench_cases import stock, tanh_case
from ddx.bench import operations
from ddx.cli import main
from ddx.kernels.launch import TABLE

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


def test_json_of_one_operation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "kernels", "--operation", "rms_norm", "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["operation"], row["mode"]) for row in result["rows"]] == [
        ("rms_norm", "forward"),
        ("rms_norm", "backward"),
        ("rms_norm", "dual"),
    ]
    assert all(row["gate"]["passed"] and row["times"]["ours"]["stream"]["us"] > 0 for row in result["rows"])
    assert {"name", "versions"} <= set(result["environment"])
    assert result["roofline"]["copy_bytes_per_s"] > 0
    written = json.loads(Path(result["file"]).read_text())
    assert written["rows"] == result["rows"]


def test_the_table_says_what_is_timed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert main.run(["bench", "kernels", "--operation", "rms_norm", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["device", "software", "roofline", "note"]
    assert "no CUDA device: what is timed is the torch path" in lines[3]
    (header,) = [line for line in lines if line.startswith("operation")]
    assert [word in header for word in ("ours µs", "× eager", "× compile", "roofline", "error", "target")] == [True] * 6
    assert sum(line.startswith("rms_norm") for line in lines) == 4  # forward, backward, both passes, dual
    assert lines[-1].endswith(f"; {out}")
    assert "rms_norm forward" in captured.err
    assert json.loads(out.read_text())["rows"]


def test_a_wrong_kernel_is_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tanh_case("forward", lambda x, w: stock(x, w) * (1 if x.dtype == torch.float64 else 2))
    monkeypatch.setattr(operations, "all_cases", lambda size: [wrong])
    assert main.run(["bench", "kernels", "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "wrong: not timed" in shown
    assert "tanh forward B2 256px: not timed: output 0: relative error" in shown


@pytest.mark.parametrize(
    ("flags", "error", "hint", "code"),
    [
        (["--operation", "rmsnorm"], "there is no operation `rmsnorm`", "did you mean `--operation rms_norm`?", 2),
        (["--ahead", "90", "--operation", "rmsnorm"], "there is no operation `rmsnorm`", "rms_norm", 2),
        (["--operation", "xyzzy"], "there is no operation `xyzzy`", "there are", 2),
        (["--tune"], "--tune needs a CUDA device", "--ahead 90", 1),
        (["--tune", "--ahead", "90"], "--tune runs on a GPU", "leave one of them out", 2),
        (["--ahead", "70"], "not one of 80, 90", "80, 90", 2),
        (["--minutes", "0"], "must be more than 0", "--minutes 8", 2),
    ],
)
def test_mistakes(flags: list[str], error: str, hint: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = TABLE.read_bytes()
    assert main.run(["bench", "kernels", *flags]) == code
    captured = capsys.readouterr()
    *_, error_line, hint_line = captured.err.strip().splitlines()
    assert captured.out == ""
    assert error in error_line and hint in hint_line
    assert TABLE.read_bytes() == before


def test_ahead_of_time_from_a_process_that_interprets(
    capsys: pytest.CaptureFixture[str], compiled_kernels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "registers.json"
    assert main.run(["bench", "kernels", "--ahead", "90", "--operation", "rms_norm", "--json", "--out", str(out)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(out.read_text())
    assert {row["operation"] for row in rows} == {"rms_norm forward", "rms_norm backward", "rms_norm dual"}
    assert all(row["target"] == "sm_90" and row["registers"] > 0 and row["local_bytes"] == 0 for row in rows)


def test_a_workspace_has_defaults_for_a_command_of_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ddx.yaml").write_text("bench kernels: {operation: [rmsnorm]}\n")
    assert main.run(["bench", "kernels", "--workspace", str(tmp_path)]) == 2
    assert "there is no operation `rmsnorm`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_measures_a_processor_only_when_asked(
    repository: Path, compiled_kernels: Path, tmp_path: Path
) -> None:
    script = [sys.executable, str(repository / "benchmarks" / "kernels.py"), "--out", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no CUDA device: nothing is timed or written" in done.stdout
    assert "activations [B, N, D] for its backward pass, stock 44.9" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run([*script, "--cpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "kernels.json").read_text())
    assert {row["operation"] for row in content["result"]["rows"]} >= {"rms_norm"}
    assert "processor" in content["machine"]
