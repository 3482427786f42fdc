"""The settings of `ddx evaluate --benchmark`: which benchmark, and who judges its pictures."""

from __future__ import annotations

from dataclasses import dataclass

from ddx.config import option
from ddx.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Draw the prompts of a benchmark, and let a judge look at the pictures."""

    benchmark: str | None = option(
        None,
        "draw a benchmark's prompts in its folder layout; --prompts is its evaluation_metadata.jsonl or dpg_bench.csv",
        choices=("geneval", "dpg"),
    )
    judge: str | None = option(
        None,
        "OpenAI-compatible endpoint of a model that sees; its key is $OPENAI_API_KEY (none: pictures alone)",
        metavar="URL",
    )
    judge_model: str | None = option(None, "name of the judging model", metavar="NAME")
    judge_requests: int = option(8, "questions in flight")
    judge_retries: int = option(5, "retries of a question after a timeout, 429 or 5xx")
    judge_timeout_s: float = option(120.0, "seconds to wait for an answer")
    judge_backoff_s: float = option(1.0, "seconds before the first retry; the wait doubles")
    samples_per_prompt: int = option(4, "pictures of each prompt of a benchmark")

    def __post_init__(self) -> None:
        if self.judge is not None and self.benchmark is None:
            raise UsageError("--judge answers the questions of a benchmark", hint="--benchmark geneval")
        if (self.judge is None) != (self.judge_model is None):
            raise UsageError(
                "--judge and --judge-model belong together", hint="--judge http://localhost:8000/v1 --judge-model NAME"
            )
        if self.judge is not None and not self.judge.startswith(("http://", "https://")):
            raise UsageError(f"judge = {self.judge} is no URL", hint="--judge http://localhost:8000/v1")
        for name in ("judge_requests", "samples_per_prompt"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1", hint=f"--{name.replace('_', '-')} 4")
        if self.judge_retries < 0 or self.judge_timeout_s <= 0 or self.judge_backoff_s < 0:
            raise UsageError("retries and waits of the judge must not be negative", hint="--judge-retries 5")
        if self.benchmark == "dpg" and self.samples_per_prompt != 4:
            raise UsageError("a file of DPG-Bench is four pictures, two by two", hint="--samples-per-prompt 4")
