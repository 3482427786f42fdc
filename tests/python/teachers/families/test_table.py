"""The table of families is the only place that names them, and the documents say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddx.methods.registry import METHODS
from ddx.teachers.families.table import FAMILIES
from ddx.teachers.registry import TEACHERS
from tiny import NAMES, Tiny

# What may name a family: its files and its row, the named teachers, what is said of those that are none, the recipe
# that builds a SANA of one's own, and the benchmarks of SANA's kernels.
MAY = ("teachers/families/", "teachers/registry.py", "teachers/unknown.py", "training/teacher/", "bench/", "kernels/")


def test_no_family_is_named_outside_its_file(repository: Path) -> None:
    classes = [pipeline.removesuffix("Pipeline") for family in FAMILIES for pipeline in family.pipelines]
    named = re.compile(
        r"\b(" + "|".join(re.escape(name) for name in classes) + r")\w*(Pipeline|Transformer|Teacher)\b"
        r"|(startswith|==|in)\s*\(?\"(" + "|".join(re.escape(name) for name in [*classes, *NAMES]) + r")"
    )
    package = repository / "python" / "ddx"
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted([*package.rglob("*.py"), *(repository / "cli").glob("*.py")])
        if path.is_relative_to(package) and not str(path.relative_to(package)).startswith(MAY)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if named.search(line) and not line.lstrip().startswith(("#", '"""'))
    ]
    assert found == []


def test_every_named_teacher_has_a_family_and_every_family_a_tiny_pipeline() -> None:
    assert {spec.family for spec in TEACHERS.values()} <= set(NAMES)
    for name in NAMES:
        assert callable(Tiny(name).module.make)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_documented(name: str, repository: Path) -> None:
    text = (repository / "docs" / "teachers.md").read_text(encoding="utf-8")
    family = next(family for family in FAMILIES if family.name == name)
    for pipeline in family.pipelines:
        assert f"`{pipeline}`" in text
    for spec in TEACHERS.values():
        if spec.family == name:
            assert f"`{spec.name}`" in text


def test_the_example_of_a_family_is_the_real_file(repository: Path) -> None:
    text = (repository / "docs" / "adding-a-teacher.md").read_text(encoding="utf-8")
    source = (repository / "python" / "ddx" / "teachers" / "families" / "sdxl.py").read_text(encoding="utf-8")
    assert f"```python\n{source.rstrip()}\n```" in text


def test_the_memory_of_the_table_is_that_of_the_methods(repository: Path) -> None:
    text = (repository / "docs" / "teachers.md").read_text(encoding="utf-8").partition("## Memory")[2]
    bytes_of = [METHODS[name].memory for name in ("scm", "lcm", "sid")]
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) >= 10 and {name for name, *_ in rows} <= set(TEACHERS)
    for name, parameters, *shown in rows:
        expected = [float(parameters) * 1e9 * size / 2**30 for size in (*bytes_of, 2.0)]
        assert [float(value) for value in shown] == pytest.approx(expected, abs=1.0), name
