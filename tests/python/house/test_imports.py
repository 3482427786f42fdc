"""Who may import whom: downwards only, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "python" / "ddx"

# A piece may import those of lower rank and itself; pieces of equal rank may not import each other, but for the ones
# that SIDEWAYS names.
RANK = {
    "__main__": 7,
    "cli": 6,
    "export": 5,
    "training": 5,
    "sampling": 5,
    "evaluation": 5,
    "data": 5,
    "workspace": 5,
    "bench": 5,
    "importing": 5,
    "memory": 5,
    "watch": 5,
    "methods": 4,
    "networks": 3,
    "teachers": 3,
    "process": 2,
    "offload": 2,
    "kernels": 1,
    "metrics": 1,
    "device": 1,
    "checkpoints": 1,
    "scenes": 0,
    "errors": 0,
    "config": 0,
    "page": 0,
    "json_lines": 0,
    "chart": 0,
    "progress": 0,
    "run_record": 0,
    "values": 0,
    "version": 0,
}
SIDEWAYS = {
    # The stages share the store and the workspace; training draws its grids and cards with sampling, and an export
    # reads what sampling reads.
    ("export", "sampling"),
    ("export", "workspace"),
    ("training", "data"),
    ("training", "sampling"),
    ("training", "workspace"),
    # A run watches what its student draws, in the feature space and with the checker of the evaluation.
    ("training", "watch"),
    ("watch", "evaluation"),
    ("watch", "sampling"),
    ("sampling", "workspace"),
    ("sampling", "data"),
    ("evaluation", "sampling"),
    ("evaluation", "workspace"),
    ("evaluation", "data"),
    ("data", "workspace"),
    ("importing", "sampling"),
    ("importing", "workspace"),
    # The bench distils mixtures with the trainer itself.
    ("bench", "training"),
    # What is counted before a run is the run's own code.
    ("memory", "training"),
    ("memory", "watch"),
    ("memory", "sampling"),
    ("memory", "data"),
    ("networks", "teachers"),
    ("config", "errors"),
    ("config", "values"),
    ("values", "errors"),
    ("run_record", "errors"),
    ("run_record", "config"),
    ("scenes", "errors"),
    ("scenes", "config"),
    ("scenes", "progress"),
}


def modules() -> list[Path]:
    """Every Python file of the package, the linked folders included."""
    return sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "cli").glob("*.py"), *(PACKAGE / "kernels").glob("*.py")])


def imported_names(path: Path) -> Iterator[str]:
    """Full dotted names of everything that a file imports, at any depth, relative imports resolved."""
    package = ["ddx", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def piece(path: Path) -> str:
    """The part of ddx that a file belongs to: the first folder, or the file's own name."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def violations(path: Path) -> list[str]:
    """Every import of a file that points upwards or sideways, in words."""
    importer, found = piece(path), []
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] == "ddx" and len(parts) > 1:
            imported = parts[1]
            if imported == "_core":
                if importer != "data":
                    found.append(f"{importer} imports ddx._core, which only ddx.data may")
            elif importer == "kernels":
                if imported != "kernels":
                    found.append(f"kernels imports {name}; it may import torch and triton only")
            elif imported in RANK and importer in RANK and imported != importer:
                sideways = (importer, imported) in SIDEWAYS
                if RANK[imported] >= RANK[importer] and not sideways:
                    found.append(f"{importer} imports {name}, which is not below it")
        elif importer == "kernels" and parts[0] in ("diffusers", "transformers", "numpy", "zarr"):
            found.append(f"kernels imports {name}; it may import torch and triton only")
    return found


def test_imports_point_downwards() -> None:
    found = {str(path.relative_to(PACKAGE)): violations(path) for path in modules()}
    assert len(found) > 100 and {name: wrong for name, wrong in found.items() if wrong} == {}


def test_every_piece_has_a_rank() -> None:
    pieces = {piece(path) for path in modules()} - {"__init__", "presets"}
    assert pieces <= set(RANK), "give the new piece a rank here and in docs/architecture.md"


def test_linked_folders_have_no_init() -> None:
    # diffusers and transformers import a third-party package named `kernels`; ours must not shadow it.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "cli" / "__init__.py").exists()
    assert (PACKAGE / "kernels").resolve() == ROOT / "kernels"
    assert (PACKAGE / "cli").resolve() == ROOT / "cli"


def test_the_rule_sees_an_upward_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "methods" / "wrong.py"
    wrong.parent.mkdir()
    wrong.write_text("from ddx.training import trainer\nfrom ..data import store\nimport ddx._core\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert len(violations(wrong)) == 3
