"""GenEval and DPG-Bench: prompt files, folder layouts, and a judge over real HTTP that also fails."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddx.cli.main import run
from ddx.errors import UsageError
from ddx.evaluation.judged.config import JudgeConfig
from ddx.evaluation.judged.items import Item, Question, read_items, score
from ddx.evaluation.judged.judge import Asked, Judge, Refused, parse_answer

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "a photo of two dogs",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cup", "count": 1},
            {"class": "book", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "prompt": "a photo of a red book left of a cup",
    },
]
DPG = """\
item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
p0,"a dog,
and a hat",,1,0,entity,whole,x,Is there a dog?
p0,"a dog,
and a hat",,2,1,attribute,colour,x,Is the dog brown?
p0,"a dog,
and a hat",,3,0,entity,whole,x,Is there a hat?
p1,a house,,1,0,entity,whole,x,Is there a house?
"""


@dataclass
class JudgeServer:
    """Says yes to what `no` does not name. `failing`: statuses of the next requests; 0 breaks the connection."""

    url: str = ""
    no: tuple[str, ...] = ()
    failing: list[int] = field(default_factory=list)
    always: dict[str, int] = field(default_factory=dict)  # a status for each request with this text
    asked: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def serve_judge() -> Iterator[JudgeServer]:
    state = JudgeServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            picture, text = body["messages"][0]["content"]
            question = text["text"].splitlines()[-1]
            encoded = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
            size = Image.open(io.BytesIO(base64.b64decode(encoded))).size
            with state.lock:
                state.asked[question] += 1
                state.headers.append(dict(self.headers))
                state.sizes.add(size)
                status = state.failing.pop(0) if state.failing else state.always.get(question, 200)
            if status == 0:
                self.connection.shutdown(socket.SHUT_RDWR)  # at once, whoever still holds it
                return
            answer = "No." if any(part in question for part in state.no) else "Yes, it does."
            content = {"choices": [{"message": {"content": answer}}]} if status == 200 else {"error": "busy"}
            data = json.dumps(content).encode() if status != 299 else b"{"
            self.send_response(200 if status == 299 else status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield state
        finally:
            server.shutdown()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (12, 10), "red").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def settings(server: JudgeServer, **changes: Any) -> JudgeConfig:
    values = {"benchmark": "geneval", "judge": server.url, "judge_model": "sees", "judge_backoff_s": 0.001}
    return JudgeConfig(**{**values, **changes})


def questions(picture: Path, count: int) -> list[Asked]:
    return [Asked(picture=f"p/{i}", key="a", text=f"Is it {i}?", path=picture) for i in range(count)]


def test_what_fails_is_asked_again_and_what_is_known_is_not(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    waits: list[float] = []
    with serve_judge() as server:
        server.failing, server.no = [503, 0, 429, 299], ("3?",)
        server.always = {"Is it 5?": 500}
        config = settings(server, judge_retries=4, judge_requests=2, judge_backoff_s=1.0)
        judge = Judge(config, tmp_path / "answers.jsonl", sleep=waits.append)
        done = Counter[str]()
        judge.ask_all(questions(picture, 8), lambda n: done.update(["done"] * n))
        assert done["done"] == 8 and judge.failures == {"HTTP 500": 1}
        assert judge.answers == {(f"p/{i}", "a"): i != 3 for i in range(8) if i != 5}
        assert server.asked["Is it 5?"] == 5  # retries, each after twice the wait; another may wait as often
        assert set(waits) == {1.0, 2.0, 4.0, 8.0} and server.sizes == {(12, 10)}
        assert {header["Authorization"] for header in server.headers} == {"Bearer secret"}
        text = (tmp_path / "answers.jsonl").read_text()
        assert "secret" not in text and len(text.splitlines()) == 7

        server.asked.clear()
        server.always = {}
        with (tmp_path / "answers.jsonl").open("a") as file:
            file.write('{"picture": "p/5", "key": "a", "ye')  # killed while it wrote
        again = Judge(config, tmp_path / "answers.jsonl", sleep=waits.append)
        again.ask_all(questions(picture, 8), lambda n: None)
        assert dict(server.asked) == {"Is it 5?": 1} and len(again.answers) == 8
        assert len(Judge(config, tmp_path / "answers.jsonl").answers) == 8
        other = Judge(settings(server, judge_model="another"), tmp_path / "answers.jsonl")
        assert other.answers == {}  # another model's answers are not its own


def test_a_refusal_ends_it_at_once_and_keeps_what_is_there(picture: Path, tmp_path: Path) -> None:
    with serve_judge() as server:
        server.always = {"Is it 1?": 401}
        judge = Judge(settings(server, judge_requests=1), tmp_path / "answers.jsonl")
        with pytest.raises(Refused, match="401") as raised:
            judge.ask_all(questions(picture, 50), lambda n: None)
        assert "OPENAI_API_KEY" in str(raised.value.hint)
        assert sum(server.asked.values()) < 50 and ("p/0", "a") in judge.answers


def test_nobody_listens(picture: Path, tmp_path: Path) -> None:
    nobody = JudgeConfig(
        benchmark="dpg", judge="http://127.0.0.1:9/v1", judge_model="m", judge_retries=1, judge_backoff_s=0.0
    )
    judge = Judge(nobody, tmp_path / "answers.jsonl")
    judge.ask_all(questions(picture, 2), lambda n: None)
    assert judge.failures == {"URLError": 2} and not judge.answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes", True), ("no.", False), ("**No**, it isn't, yes", False), ("Nothing yesterday", None), ("", None)],
)
def test_answers_are_the_first_yes_or_no(text: str, answer: bool | None) -> None:
    assert parse_answer(text) is answer


def test_questions_of_geneval(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, GENEVAL)) + "\n\n")
    one, two, three = read_items("geneval", tmp_path / "g.jsonl")
    assert [question.text for question in one.questions] == ["Does the picture show at least 1 bench?"]
    assert [question.text for question in two.questions] == ["Does the picture show exactly 2 dog objects?"]
    assert [question.text for question in three.questions] == [
        "Does the picture show at least 1 cup?",
        "Does the picture show at least 1 red book?",
        "Is the book left of the cup in the picture?",
    ]
    assert (two.name, two.category, two.metadata) == ("00001", "counting", GENEVAL[1])
    answers = {question.key: True for question in three.questions}
    assert score(three, answers, "geneval") == 1.0
    assert score(three, {**answers, "position1": False}, "geneval") == 0.0
    assert score(three, {"object0": True}, "geneval") is None
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}')
    with pytest.raises(UsageError, match="line 1"):
        read_items("geneval", tmp_path / "bad.jsonl")


def test_a_question_of_dpg_counts_only_where_its_parents_hold(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(DPG)
    first, second = read_items("dpg", tmp_path / "d.csv")
    assert first.prompt == "a dog,\nand a hat" and [q.parents for q in first.questions] == [(), ("1",), ()]
    assert score(first, {"1": True, "2": True, "3": False}, "dpg") == pytest.approx(2 / 3)
    assert score(first, {"1": False, "2": True, "3": True}, "dpg") == pytest.approx(1 / 3)
    assert score(second, {"1": True}, "dpg") == 1.0
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no column item_id"):
        read_items("dpg", tmp_path / "bad.csv")
    for name in ("none.csv", "empty.jsonl"):
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(UsageError, match=r"cannot read|holds no prompt"):
            read_items("geneval", tmp_path / name)
    item = Item(name="a", prompt="b", category="c", questions=(Question(key="1", text="?", category="d"),), metadata={})
    assert score(item, {}, "dpg") is None


def test_a_student_is_drawn_and_judged(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, GENEVAL)))
    (tmp_path / "d.csv").write_text(DPG)
    common = ["--student", str(student), "--steps", "1", "--device", "cpu", "--workspace", str(tmp_path), "--json"]
    with serve_judge() as server:
        server.no, server.failing = ("exactly 2 dog", "hat"), [500, 500]
        judge = ["--judge", server.url, "--judge-model", "sees", "--set", "judge_backoff_s=0.001"]
        command = ["evaluate", "--benchmark", "geneval", "--prompts", str(tmp_path / "g.jsonl"), *judge, *common]
        assert run([*command, "--samples-per-prompt", "2"]) == 0
        answer = json.loads(capsys.readouterr().out)
        (row,) = answer["rows"]
        assert row["tasks"] == {"single_object": 1.0, "counting": 0.0, "position": 1.0}
        assert row["overall"] == pytest.approx(2 / 3) and (row["judged"], row["missing"]) == (6, 0)
        folder = Path(row["folder"])
        assert len(list(folder.glob("0000?/samples/0000?.png"))) == 6
        assert json.loads((folder / "00002/metadata.jsonl").read_text()) == GENEVAL[2]
        asked = sum(server.asked.values())
        assert run([*command, "--samples-per-prompt", "2"]) == 0  # all of it is there already
        assert sum(server.asked.values()) == asked and json.loads(capsys.readouterr().out)["rows"] == [row]

        command = ["evaluate", "--benchmark", "dpg", "--prompts", str(tmp_path / "d.csv"), *judge, *common]
        assert run(command) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["overall"] == pytest.approx((2 / 3 + 1) / 2)
        assert Image.open(Path(row["folder"]) / "p0.png").size == (128, 128)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"judge": "http://x/v1", "judge_model": "m"}, "of a benchmark"),
        ({"benchmark": "dpg", "judge": "http://x/v1"}, "belong together"),
        ({"benchmark": "dpg", "judge": "x", "judge_model": "m"}, "is no URL"),
        ({"benchmark": "dpg", "samples_per_prompt": 2}, "two by two"),
        ({"judge_requests": 0}, "at least 1"),
        ({"judge_retries": -1}, "not be negative"),
    ],
    ids=["no-benchmark", "no-model", "no-url", "grid", "none-at-once", "negative"],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        JudgeConfig(**values)
