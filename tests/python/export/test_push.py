"""A student on the hub: real requests of huggingface_hub to a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from ddx.cli import main
from ddx.export.config import PushConfig
from ddx.export.push import prepare
from ddx.networks.lora_header import DIFFUSERS_FILE
from ddx.run_record import read_run, write_run
from ddx.workspace import Workspace
from hub_server import COMMIT, TOKEN, Hub, hub
from students import make_student
from watchdog import WATCHDOG_S


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as found:
        yield found


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished student in a workspace, with what a training and `ddx sample` leave."""
    root = tmp_path_factory.mktemp("place") / "runs"
    folder = make_student(
        "flow",
        root / "students/mine",
        teacher="sana-600m",
        teacher_source="Efficient-Large-Model/Sana_600M_512px_diffusers",
        teacher_revision="83d7a190bfd1fd070570a793d2dab5c7a3231b9d",
        store=str(root / "data/pairs.zarr"),
        config={"out": str(folder_of(root)), "train_steps": 5},
    )
    for name in ("checkpoints/step-5/student.safetensors", "averages/a/model_index.json", "metrics.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for name in ("grids/step-000001.png", "grids/step-000005.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (int(name[-5]), 0, 0)).save(folder / name)
    samples = root / "samples/mine"
    samples.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(samples / "000-cat.png")
    images = [{"prompt": "a cat: red", "seed": 0, "path": str(samples / "000-cat.png")}]
    write_run(samples, {"kind": "samples", "images": images}, finished=True)
    return folder


def folder_of(root: Path) -> Path:
    return root / "students/mine"


def ddx(line: list[str], server: Hub | None, place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    known |= {"HF_HOME": str(place), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": server.address if server else ""}
    return subprocess.run(
        [sys.executable, "-m", "ddx.cli.main", *line],
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


def push_line(student: Path, name: str, *more: str) -> list[str]:
    return ["push", str(student), name, "--workspace", str(student.parents[1]), *more]


def card_matter(text: str) -> dict[str, Any]:
    matter: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return matter


def test_a_student_is_uploaded_whole_and_nothing_of_its_training(server: Hub, student: Path, tmp_path: Path) -> None:
    done = ddx(push_line(student, "me/first", "--private", "--json"), server, tmp_path, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["url"] == f"{server.address}/me/first" and said["commit"] == COMMIT
    assert server.visible["me/first"].get("private") or server.visible["me/first"].get("visibility") == "private"
    assert server.messages == ["Student mine"]
    files = server.repositories["me/first"]
    folders = {name.partition("/")[0] for name in files}
    parts = {"transformer", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert folders == {*parts, "pictures", "model_index.json", "run.json", "README.md"}
    for name, content in files.items():
        if name.partition("/")[0] in parts:
            assert content == (student / name).read_bytes(), name
    assert files["pictures/grid.png"] == (student / "grids/step-000005.png").read_bytes()

    text = files["README.md"].decode()
    matter = card_matter(text)
    assert matter["base_model"] == "Efficient-Large-Model/Sana_600M_512px_diffusers"
    assert matter["base_model_relation"] == "finetune" and matter["pipeline_tag"] == "text-to-image"
    assert matter["license"] == "apache-2.0"
    assert matter["widget"] == [{"text": "a cat: red", "output": {"url": "pictures/000-cat.png"}}]
    assert "pictures/000-cat.png" in files and "<Gallery />" in text and "(pictures/grid.png)" in text
    record = json.loads(files["run.json"])
    assert record["store"] == "pairs.zarr" and record["config"]["out"] == "mine"
    assert str(student.parents[1]).encode() not in b"".join(v for k, v in files.items() if k.endswith((".json", ".md")))

    again = ddx(push_line(student, "me/first"), server, tmp_path, HF_TOKEN=TOKEN)  # the repository is there
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == f"{server.address}/me/first"


def test_what_the_hub_refuses_is_said_with_its_cure(server: Hub, student: Path, tmp_path: Path) -> None:
    for name, environment, error, hint in (
        ("me/second", {}, "there is no token", "`hf auth login`"),
        ("me/second", {"HF_TOKEN": "hf_wrong"}, "does not know the token", "`hf auth login`"),
        ("other/second", {"HF_TOKEN": TOKEN}, "may not write to other/second", "another ORG/NAME"),
        ("me/second", {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
        ("me/second", {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}, "could not be uploaded", "network"),
    ):
        done = ddx(push_line(student, name), server, tmp_path, **environment)
        assert done.returncode == 1, done.stdout
        lines = done.stderr.strip().splitlines()
        assert lines[-2].startswith("error: ") and error in lines[-2], done.stderr
        assert lines[-1].startswith("hint: ") and hint in lines[-1]
    assert not {"me/second", "other/second"} & set(server.repositories)


def test_a_plan_asks_nobody(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(push_line(student, "me/x", "--dry-run", "--json")) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["repository"] == "me/x" and not planned["private"] and planned["bytes"] > 1000
    assert not [name for name in planned["files"] if name.startswith(("checkpoints", "averages", "metrics", "grids"))]
    assert main.run(push_line(student, "me/x", "--dry-run")) == 0
    assert "pictures/ (2)" in capsys.readouterr().out


def test_what_cannot_be_pushed_is_refused(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mine", "a/b/c", "me/a..b"):
        assert main.run(push_line(student, name)) == 2
        assert f"{name!r} is no repository" in capsys.readouterr().err
    unfinished = make_student("flow", tmp_path / "half")
    record = read_run(unfinished)
    assert record is not None
    write_run(unfinished, record, finished=False)
    assert main.run(push_line(unfinished, "me/half")) == 1
    error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "is not finished" in error and "ddx distill" in hint
    assert main.run(push_line(student, "me/x", "--samples", str(tmp_path))) == 2
    assert "holds no pictures" in capsys.readouterr().err


def test_a_low_rank_student_is_an_adapter_and_a_local_teacher_no_base(tmp_path: Path) -> None:
    folder = make_student("flow", tmp_path / "low", teacher_source="someone/sana")
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_bias": False})}
    save_file({"a": torch.zeros(1)}, folder / DIFFUSERS_FILE, metadata=header)
    upload = prepare(folder, "me/low", PushConfig(), Workspace(tmp_path / "runs"))
    matter = card_matter(upload.texts["README.md"])
    assert (matter["base_model"], matter["base_model_relation"]) == ("someone/sana", "adapter")
    assert DIFFUSERS_FILE in upload.files and "widget" not in matter
    record = read_run(folder)
    assert record is not None
    write_run(folder, {**record, "teacher_source": "/models/sana"}, finished=True)
    upload = prepare(folder, "me/low", PushConfig(), Workspace(tmp_path / "runs"))
    assert "base_model" not in card_matter(upload.texts["README.md"])
    assert "/models" not in upload.texts["run.json"]
