"""`ddx list runs` reads whatever is under students/, and never ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ddx.cli import main
from ddx.run_record import write_json, write_run

RECORD: dict[str, Any] = {
    "kind": "student",
    "teacher": "/somewhere/sana-tiny",
    "method": "lcm",
    "images_seen": 800,
    "config": {"train_steps": 100, "batch_size": 8},
}


def listed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main.run(["list", "runs", "--json", "--workspace", str(workspace)]) == 0
    return {run["name"]: run for run in json.loads(capsys.readouterr().out)}


def metrics(folder: Path, *lines: dict[str, Any], torn: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def test_a_finished_run_and_one_on_its_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, going = (tmp_path / "students" / name for name in ("done", "going"))
    costs = {"seconds": 3725.4, "peak_memory_bytes": 2_500_000_000, "best": {"step": 80, "metric": "distance"}}
    write_run(done, {**RECORD, **costs, "alarms": ["saturation"]}, finished=True)
    rows = [{"model": "teacher", "steps": 20, "overall": 0.9, "frechet": 0.4}]
    rows += [{"model": "student", "steps": n, "overall": 0.5 + n / 10, "frechet": 1.0} for n in (1, 2)]
    write_json(done / "scores.json", {"rows": rows})
    write_run(going, {**RECORD, "images_seen": 0}, finished=False)
    line = {"step": 40, "loss": 1.0, "seconds": 75.0, "peak_memory_bytes": 10**9}
    metrics(going, line, {"step": 44, "ode_distance": 0.1}, torn='{"step": 48, "lo')
    (going / "watch.jsonl").write_text(json.dumps({"step": 40, "alarms": [{"name": "dark"}]}) + "\n")
    write_json(going / "watch" / "best.json", {"step": 20, "metric": "distance", "value": 0.3, "file": None})
    found = listed(tmp_path, capsys)
    assert found["done"]["state"] == "finished" and found["done"]["steps"] == 100
    assert [row["overall"] for row in found["done"]["scores"]] == [0.6, 0.7]
    assert found["going"]["state"] == "unfinished" and found["going"]["steps"] == 44
    assert found["going"]["images_seen"] == 352 and found["going"]["seconds"] == 75.0
    assert found["going"]["alarms"] == ["dark"] and found["going"]["best"]["step"] == 20
    assert main.run(["list", "runs", "--workspace", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    for words in ("1 h 02 min", "2.50 GB", "overall 0.7 (2 steps)", "44/100", "sana-tiny", "saturation", "step 80"):
        assert words in table, words
    assert "/somewhere" not in table


BROKEN: dict[str, Any] = {
    "empty": {},
    "no record": {"metrics.jsonl": '{"step": 3}\n'},
    "torn record": {"run.json": '{"method": "lcm", "te'},
    "a list": {"run.json": "[1, 2]"},
    "not text": {"run.json": b"\xff\xfe\x00", "metrics.jsonl": b"\xff\xff\n\x00"},
    "odd values": {
        "run.json": '{"finished": "yes", "config": [], "images_seen": "many", "alarms": 3, "best": 1, "method": 7}',
        "metrics.jsonl": '[1]\n"x"\n{"step": "four", "seconds": NaN}\n',
        "scores.json": '{"rows": [1, {"model": "student", "overall": "high"}]}',
        "watch.jsonl": '{"alarms": [1, {"name": null}]}\n',
        "watch": "a file",
    },
}


def test_broken_runs_are_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, files in BROKEN.items():
        folder = tmp_path / "students" / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "students" / "a file").write_text("")
    (tmp_path / "students" / "nowhere").symlink_to(tmp_path / "gone")
    found = listed(tmp_path, capsys)
    assert set(found) == set(BROKEN)
    assert {name: run["state"] for name, run in found.items()} == {
        **dict.fromkeys(BROKEN, "broken"),
        "odd values": "unfinished",
    }
    assert "run.json" in found["torn record"]["problem"] and found["no record"]["steps"] == 3
    assert main.run(["list", "runs", "--workspace", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("broken") == 5


def test_without_runs_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["list", "runs", "--workspace", str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out
