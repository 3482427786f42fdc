"""The benchmark of kills, with fewer of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kills_while_writing_and_while_replacing_lose_nothing(repository: Path, tmp_path: Path) -> None:
    script = repository / "benchmarks" / "kills.py"
    line = [sys.executable, str(script), "--kills", "10", "--out", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "kills.json").read_text())["result"]
    assert result["kills"] >= 10 and result["kills_in_retry"] >= 1
    assert (result["lost_parts"], result["duplicated_rows"], result["differing_files"]) == (0, 0, 0)
