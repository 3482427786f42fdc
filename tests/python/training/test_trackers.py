"""`ddx distill --track`: what each library has of a run, at its end, after it went on, and when it fails."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import distill_runs as runs
from ddx.errors import UsageError
from ddx.progress import NullProgress
from ddx.training.trackers import names
from ddx.training.trackers.base import Tracked
from ddx.training.trackers.follow import Trackers
from ddx.training.trackers.jsonl import JSONLines
from hears import Heard

GRIDS: dict[str, Any] = {"sample_every": 4, "sample_prompts": 1, "sample_steps": (1,), "reference_steps": 1}
LOOKS: dict[str, Any] = {
    **{"watch": True, "watch_every": 4, "watch_cost": 1e6, "watch_prompts": 2, "watch_seeds": 2},
    **{"keep_best": "distance", "reference_steps": 1},
}
WITHOUT = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import distill_runs as runs
runs.run(Path({teacher!r}), Path({store!r}), Path({out!r}), train_steps=1)
print(sorted({{"wandb", "mlflow", "tensorboard", "torch.utils.tensorboard"}} & set(sys.modules)))
"""


class Stopping(NullProgress):
    """Asks the process to stop when a step is done."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, amount: int = 1, **shown: Any) -> None:
        self.left -= amount
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def needs(*libraries: str) -> pytest.MarkDecorator:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"ddx[track] is not installed: {', '.join(missing)}")


def interrupted(teacher: Path, store: Path, workspace: Path, **settings: Any) -> Path:
    """A run that is stopped after its fifth step and goes on to its end."""
    with pytest.raises(KeyboardInterrupt):
        runs.run(teacher, store, workspace, progress=Stopping(5), **settings)
    heard = Heard()
    student = runs.run(teacher, store, workspace, progress=heard, **settings)
    assert not [line for line in heard.said if "tracking by" in line]
    return student


def test_a_run_without_trackers_imports_none(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    script = WITHOUT.format(path=sys.path, teacher=str(teacher_folder), store=str(store), out=str(tmp_path))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip().splitlines()[-1] == "[]"
    assert not list(tmp_path.glob("students/*/track"))


def test_lines_have_the_settings_the_numbers_and_the_grids_of_one_run(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    student = interrupted(teacher_folder, store, tmp_path, track=("jsonl",), **GRIDS)
    lines = [json.loads(line) for line in (student / "track" / "track.jsonl").read_text().splitlines()]
    begun = [line for line in lines if "settings" in line]
    assert [line["step"] for line in begun] == [0, 5]
    assert begun[0]["settings"]["learning_rate"] == 1e-3 and begun[0]["name"] == student.name
    numbers = [line for line in lines if "loss" in line.get("values", {})]
    assert [line["step"] for line in numbers] == list(range(1, 9))
    metrics = {line["step"]: line["loss"] for line in runs.lines(student) if "loss" in line}
    assert {line["step"]: line["values"]["loss"] for line in numbers} == metrics
    pictures = [line for line in lines if "picture" in line]
    assert [line["step"] for line in pictures] == [0, 4, 8] and all(Path(p["picture"]).is_file() for p in pictures)
    assert json.loads((student / "run.json").read_text())["config"]["track"] == ["jsonl"]


def test_looks_and_the_best_weights_are_told(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    student = runs.run(teacher_folder, store, tmp_path, track=("jsonl",), **LOOKS)
    lines = [json.loads(line) for line in (student / "track" / "track.jsonl").read_text().splitlines()]
    looks = [json.loads(line) for line in (student / "watch.jsonl").read_text().splitlines()]
    told = {line["step"]: line["values"] for line in lines if "watch/distance" in line.get("values", {})}
    assert {step: values["watch/distance"] for step, values in told.items()} == {
        look["step"]: look["student"][str(look["judged_steps"])]["distance"] for look in looks
    }
    assert {"watch/brightness", "watch/ode_distance", "watch/alarms"} <= set(told[4])
    strips = [Path(line["picture"]) for line in lines if line.get("name") == "watch" and "picture" in line]
    assert [path.name for path in strips] == [f"step-{look['step']:06d}.jpg" for look in looks]
    (best,) = [line for line in lines if "weights" in line]
    assert best["step"] == looks[-1]["best"]["step"] and load_file(best["weights"])


def test_what_is_done_again_stands_once_in_the_lines(tmp_path: Path) -> None:
    run = Tracked(name="run", folder=tmp_path, settings={"a": 1}, start=0)
    first = JSONLines(run)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": step})
    with first.path.open("a") as file:
        file.write('{"step": 4, "val')  # killed
    again = JSONLines(Tracked(name="run", folder=tmp_path, settings={"a": 1}, start=2))
    again.scalars(3, {"loss": 30})
    lines = [json.loads(line) for line in first.path.read_text().splitlines()]
    assert [(line["step"], line["values"]["loss"]) for line in lines if "values" in line] == [(1, 1), (2, 2), (3, 30)]


def test_a_tracker_that_fails_ends_no_run(
    teacher_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: JSONLines, step: int, values: Any) -> None:
        if step == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(JSONLines, "scalars", full)
    heard = Heard()
    student = runs.run(teacher_folder, store, tmp_path, progress=heard, track=("jsonl",))
    assert json.loads((student / "run.json").read_text())["finished"]
    warnings = [line for line in heard.said if "tracking by jsonl failed" in line]
    assert len(warnings) == 1 and "No space left" in warnings[0]


def test_one_that_does_not_open_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    trackers = Trackers(("jsonl",), Tracked(name="run", folder=tmp_path / "file", settings={}, start=0), said.append)
    trackers.line({"step": 1, "loss": 1.0})
    trackers.close(finished=True)
    assert len(said) == 1 and "jsonl" in said[0]


def test_a_missing_library_is_one_line_with_the_command(
    teacher_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(names.NEEDED, "wandb", ("no_such_library", "wandb"))
    with pytest.raises(UsageError, match="wandb is not installed") as refused:
        runs.run(teacher_folder, store, tmp_path, track=("wandb",))
    assert "pip install" in str(refused.value.hint) and not (tmp_path / "students").exists()


@needs("tensorboard")
def test_tensorboard_has_one_run(teacher_folder: Path, store: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    student = interrupted(teacher_folder, store, tmp_path, track=("tensorboard",), **(GRIDS | LOOKS))
    events = EventAccumulator(str(student / "track" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    metrics = [line["loss"] for line in runs.lines(student) if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(metrics)
    assert [event.step for event in events.Images("grids")] == [0, 4, 8]
    assert (
        [event.step for event in events.Images("watch")]
        == [0, 4, 8]
        == [event.step for event in events.Scalars("watch/distance")]
    )
    (text, *_) = events.Tensors("best/text_summary")
    assert "best-00" in text.tensor_proto.string_val[0].decode()
    (text, *_) = events.Tensors("settings/text_summary")
    assert "learning_rate" in text.tensor_proto.string_val[0].decode()


@needs("mlflow", "sqlalchemy")
def test_mlflow_has_one_run(teacher_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    student = interrupted(teacher_folder, store, tmp_path, track=("mlflow",), **(GRIDS | LOOKS))
    client = MlflowClient(tracking_uri=f"sqlite:///{(student / 'track' / 'mlflow.db').resolve()}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "ddx"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == student.name
    assert run.data.params["learning_rate"] == "0.001"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, 9))
    grids = client.list_artifacts(run.info.run_id, "grids")
    assert len(client.list_artifacts(run.info.run_id, "watch")) == 3
    (best,) = client.list_artifacts(run.info.run_id, "best")
    assert Path(best.path).name == f"best-{int(run.data.tags['best_step']):06d}.safetensors"
    assert len(grids) == 3 and "settings.json" in {found.path for found in client.list_artifacts(run.info.run_id)}


@needs("wandb")
def test_wandb_offline_goes_on_under_one_identifier(
    teacher_folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    student = interrupted(teacher_folder, store, tmp_path, track=("wandb",), **(GRIDS | LOOKS))
    identifier = json.loads((student / "track" / "wandb.json").read_text())["id"]
    sittings = sorted((student / "track" / "wandb").glob("offline-run-*"))
    assert len(sittings) == 2 and all(sitting.name.endswith(identifier) for sitting in sittings)
    assert all(list(sitting.glob("*.wandb")) for sitting in sittings)
    assert list(sittings[0].glob("files/media/images/grids*.png"))
    assert list(sittings[0].glob("files/media/images/watch*.jpg"))
    wandb.teardown()  # its own process writes the end of the file
    assert f"{identifier}-best".encode() in next(sittings[1].glob("*.wandb")).read_bytes()
