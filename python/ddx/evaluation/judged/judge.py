"""A judge behind an OpenAI-compatible endpoint: yes or no to a question about a picture, asked again where it fails.

answers.jsonl    one answer a line; a run that was stopped, or that had failures, goes on with what is missing
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ddx.errors import DdxError, cannot_write
from ddx.evaluation.judged.config import JudgeConfig

INSTRUCTION = "Look at the picture and answer the question with one word, yes or no."
FINAL = (400, 401, 403, 404, 405, 413, 422)  # asking again changes nothing
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, order=True)
class Asked:
    """A question about a picture, by the names under which its answer is kept."""

    picture: str
    key: str
    text: str = field(compare=False)
    path: Path = field(compare=False)


class Refused(DdxError):
    """The endpoint refuses the request itself, so all others too."""


class Judge:
    """Asks, and keeps the answers in a file."""

    def __init__(self, config: JudgeConfig, file: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        assert config.judge is not None and config.judge_model is not None
        self.url = config.judge.rstrip("/") + "/chat/completions"
        self.config, self.file, self.sleep = config, file, sleep
        self.answers: dict[tuple[str, str], bool] = {}
        self.failures: dict[str, int] = {}
        self._lock = threading.Lock()
        self._read()

    def ask_all(self, questions: Iterable[Asked], done: Callable[[int], None]) -> None:
        """Ask what has no answer yet; `done` is called with 1 a question.

        A question that keeps failing is counted in `failures` and left out. Refused where the endpoint refuses
        requests as such: a wrong key, path or model.
        """
        todo = []
        for question in questions:
            if (question.picture, question.key) in self.answers:
                done(1)
            else:
                todo.append(question)
        refusal: list[Refused] = []

        def work(question: Asked) -> None:
            if refusal:
                return
            try:
                self._keep(question, self._ask(question))
            except Refused as error:
                refusal.append(error)
            except DdxError as error:
                with self._lock:
                    self.failures[error.message] = self.failures.get(error.message, 0) + 1
            done(1)

        with ThreadPoolExecutor(self.config.judge_requests) as pool:
            list(pool.map(work, todo))
        if refusal:
            raise refusal[0]

    def by_picture(self) -> dict[str, dict[str, bool]]:
        """Return the answers by picture and key."""
        found: dict[str, dict[str, bool]] = {}
        for (picture, key), answer in self.answers.items():
            found.setdefault(picture, {})[key] = answer
        return found

    def _ask(self, question: Asked) -> bool:
        picture = base64.b64encode(question.path.read_bytes()).decode("ascii")
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": f"{INSTRUCTION}\n{question.text}"},
        ]
        body = {
            "model": self.config.judge_model,
            "temperature": 0,
            "max_tokens": 16,
            "messages": [{"role": "user", "content": content}],
        }
        wait, problem = self.config.judge_backoff_s, ""
        for attempt in range(self.config.judge_retries + 1):
            if attempt:
                self.sleep(min(wait, LONGEST_WAIT_S))
                wait *= 2
            try:
                answer = parse_answer(self._post(body))
            except urllib.error.HTTPError as error:
                if error.code in FINAL:
                    raise self._refused(error) from error
                problem = f"HTTP {error.code}"
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:  # no connection, or no such JSON
                problem = type(error).__name__
            else:
                if answer is not None:
                    return answer
                problem = "neither yes nor no"
        raise DdxError(problem)

    def _post(self, body: object) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.config.judge_timeout_s) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    def _refused(self, error: urllib.error.HTTPError) -> Refused:
        text = error.read(300).decode("utf-8", "replace").strip()
        return Refused(
            f"{self.url} refuses the request: {error.code} {text or error.reason}",
            hint="check --judge, --judge-model and $OPENAI_API_KEY; the answers so far are kept",
        )

    def _keep(self, question: Asked, answer: bool) -> None:
        line = {"picture": question.picture, "key": question.key, "question": question.text, "yes": answer}
        with self._lock:
            self.answers[question.picture, question.key] = answer
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**line, "model": self.config.judge_model}, ensure_ascii=False) + "\n")
            except OSError as error:
                raise cannot_write(self.file, error) from error

    def _read(self) -> None:
        """Read the answers of the same model; a line that a stopped run left half is asked again."""
        try:
            lines = self.file.read_text(encoding="utf-8").split("\n")
        except OSError:
            return
        if lines[-1]:  # cut: what is appended next must not join it
            with self.file.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["model"] == self.config.judge_model:
                    self.answers[entry["picture"], entry["key"]] = bool(entry["yes"])
            except (ValueError, KeyError, TypeError):
                continue


def parse_answer(text: str) -> bool | None:
    """Return whether the first yes or no in an answer is a yes; None where there is neither."""
    found = re.search(r"\b(yes|no)\b", text.lower())
    return None if found is None else found[1] == "yes"
