"""The wheel holds the whole tree: a wrong packaging setting loses folders without any error."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def files_of_the_package() -> set[str]:
    """Every file under python/ddx, links followed, as a wheel names them."""
    package, found = ROOT / "python", set[str]()
    for folder, folders, files in os.walk(package / "ddx", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {str((Path(folder) / name).relative_to(package)) for name in files if not name.endswith(".so")}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One wheel, built as a release is; the compiled crates are shared with every other build here."""
    out = tmp_path_factory.mktemp("wheel")
    maturin = Path(sys.prefix) / "bin" / "maturin"
    command = [str(maturin), "build", "--release", "--locked", "--out", str(out), "--interpreter", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_tree(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if name.startswith("ddx/")}
    expected = files_of_the_package()
    assert expected, "the package is empty"
    assert sorted(expected - packed) == [], "lost from the wheel"
    extension = packed - expected
    assert [name for name in extension if not name.startswith("ddx/_core.")] == [], "in the wheel, not in the tree"
    assert len([name for name in extension if name.endswith(".so")]) == 1
    assert any(name.startswith("ddx/cli/") for name in packed)
    assert any(name.startswith("ddx/kernels/") for name in packed)


@pytest.mark.slow
def test_wheel_suits_every_python_from_3_11(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name


@pytest.mark.slow
def test_wheel_carries_the_command_and_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "ddx=ddx.cli.main:main" in archive.read(entry_points).decode().replace(" ", "")
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any("__pycache__" in name for name in names)


def test_one_version() -> None:
    import ddx

    cargo = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    assert f'version = "{ddx.__version__}"' in cargo
