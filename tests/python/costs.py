"""Where the time of a run of the tests goes: a table at its end, also when several processes share the tests."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest

BEGAN = time.perf_counter()
COLLECTING, FORKED = "starting, collecting", "forked commands"
COLUMNS = ("tests", "seconds", "processor s", "processes", "their processor s")


@dataclass
class Cost:
    """What tests took: wall time, processor time of this process, processes that they started and their time."""

    tests: int = 0
    seconds: float = 0.0
    own: float = 0.0
    processes: int = 0
    theirs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def cells(self) -> tuple[str, ...]:
        tests, processes = (str(number) if number else "" for number in (self.tests, self.processes))
        theirs = f"{self.theirs:.1f}" if self.theirs else ""
        return tests, f"{self.seconds:.1f}", f"{self.own + self.theirs:.1f}", processes, theirs


class Costs:
    """A plugin of pytest: counts by folder of tests, and adds up what the workers of xdist counted."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.started = config, 0
        self.inherited = _children()
        self.found: dict[str, Cost] = {}
        sys.addaudithook(self.watch)

    def watch(self, event: str, _arguments: Any) -> None:
        self.started += event == "subprocess.Popen"

    def now(self) -> Cost:
        theirs = _children() - self.inherited
        return Cost(0, time.perf_counter() - BEGAN, time.process_time(), self.started, theirs)

    def add(self, name: str, cost: Cost) -> None:
        self.found[name] = self.found.get(name, Cost()) + cost

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.add(COLLECTING, self.now())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = self.now()
        done = yield
        folder = Path(item.path).parent.relative_to(self.config.rootpath)
        self.add(str(folder), self.now() - before + Cost(tests=1))
        return done

    def pytest_sessionfinish(self) -> None:
        if any(cost.tests for cost in self.found.values()):
            self.add(FORKED, Cost(theirs=_alive()))
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["costs"] = {name: astuple(cost) for name, cost in self.found.items()}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for name, cost in getattr(node, "workeroutput", {}).get("costs", {}).items():
            self.add(name, Cost(*cost))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        folders = sorted((name for name, cost in self.found.items() if cost.tests), key=lambda name: -self.total(name))
        if len(folders) < 2:
            return
        names = [name for name in (COLLECTING, *folders, FORKED) if name in self.found]
        rows = [("", *COLUMNS), *((name, *self.found[name].cells()) for name in names)]
        rows.append(("all of Python", *sum(self.found.values(), Cost()).cells()))
        if seconds := os.environ.get("DDX_RUST_SECONDS"):
            rows.append(("cargo test", "", f"{float(seconds):.1f}", "", "", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        terminalreporter.section("where the time goes (seconds of all workers together)")
        for first, *others in rows:
            cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            terminalreporter.line("  ".join((first.ljust(widths[0]), *cells)))

    def total(self, name: str) -> float:
        return self.found[name].own + self.found[name].theirs


def _children() -> float:
    """Processor time of the processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _alive() -> float:
    """Processor time of the children that still run, and of those that they waited for."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[1]) == os.getpid() else 0
    return ticks / os.sysconf("SC_CLK_TCK")
