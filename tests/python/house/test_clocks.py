"""No test may pass or fail by a clock: what waits has the watchdog's patience, and nobody measures how long it took."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# The watchdog itself, the table that says where the time went, and what goes on for as long as `make fuzz` says.
OWN = ("watchdog.py", "costs.py", "fuzz_decoders.py")
CLOCKS = {"monotonic", "perf_counter", "time", "process_time", "monotonic_ns", "perf_counter_ns", "time_ns"}
WAITING = {"join", "wait", "communicate"}
LESS_THAN = re.compile(r"assert[^;\n]*elapsed\(\)[^;\n]*<")


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def clocks(source: str) -> Iterator[str]:
    """Deadlines in numbers, and looks at a clock, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            deadlines = [word.value for word in node.keywords if word.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in WAITING:
                deadlines += node.args
            if any(map(is_number, deadlines)):
                yield f"line {node.lineno}: a deadline that is not the watchdog's"
        elif isinstance(node, ast.Attribute) and node.attr in CLOCKS and ast.unparse(node.value) == "time":
            yield f"line {node.lineno}: a look at the clock"


def test_no_test_depends_on_how_fast_the_machine_is() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name not in OWN]
    found = {str(path.relative_to(ROOT)): list(clocks(path.read_text(encoding="utf-8"))) for path in files}
    assert len(files) > 100 and {name: lines for name, lines in found.items() if lines} == {}
    rust = [path for path in (ROOT / "rust").rglob("*.rs") if LESS_THAN.search(path.read_text(encoding="utf-8"))]
    assert rust == []


def test_the_rule_sees_deadlines_and_clocks() -> None:
    wrong = (
        "run(x, timeout=3)\nthread.join(20)\nassert time.monotonic() < 5\nthread.join(WATCHDOG_S)\n', '.join('ab')\n"
    )
    assert [line.split(":")[0] for line in clocks(wrong)] == ["line 1", "line 2", "line 3"]
    assert LESS_THAN.search("assert!(start.elapsed() < Duration::from_secs(10));")
