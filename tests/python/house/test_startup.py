"""A command starts with what it needs and nothing more, and only ddx speaks."""

from __future__ import annotations

import os
import subprocess
import sys

TALKATIVE = """
import logging, sys, types, warnings
from ddx.cli.third_party import quiet_libraries
quiet_libraries()
library, own = types.ModuleType("library"), types.ModuleType("ddx.own")
for module, words in ((library, "of a library"), (own, "of our own")):
    said = f"for kind in (UserWarning, FutureWarning, DeprecationWarning): warnings.warn({words!r}, kind)"
    exec(f"import warnings\\n{said}", module.__dict__)
from transformers.utils import logging as transformers_logging
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import logging as hub_logging
for library in (transformers_logging, diffusers_logging, hub_logging):
    library.get_logger(library.__name__).warning("advice of a library")
    library.get_logger(library.__name__).error("an error of a library")
"""

# Opening a teacher, its fingerprint and the network's class: no pipeline, no kernels, no compiler of our asking.
LEAN = """
import sys
from ddx.teachers.registry import load_teacher
teacher = load_teacher("sana-tiny")
assert teacher.fingerprint()["max_sequence_length"] == 300
import ddx.kernels.dispatch
print("BEFORE", sorted({"diffusers", "transformers", "triton", "torch._dynamo"} & set(sys.modules)))
teacher.network(), teacher.encode_text(["a red circle"])
print("AFTER", sorted({"diffusers.pipelines.sana.pipeline_sana", "ddx.kernels.linear_attention"} & set(sys.modules)))
"""


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {name: value for name, value in os.environ.items() if not name.endswith(("VERBOSITY", "WARNINGS"))}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**keep, **environment}
    )


def test_a_librarys_warnings_stay_away_and_ours_and_errors_do_not() -> None:
    said = python(TALKATIVE).stderr
    assert said.count("of our own") >= 2  # once a category that is shown
    assert "warning: of a library" not in said.lower() and "Warning: of a library" not in said
    assert "advice of a library" not in said
    assert said.count("an error of a library") == 3


def test_what_a_user_asked_to_hear_is_heard() -> None:
    said = python(TALKATIVE, PYTHONWARNINGS="default", TRANSFORMERS_VERBOSITY="warning").stderr
    assert "Warning: of a library" in said
    assert said.count("advice of a library") == 1


def test_a_teacher_opens_without_pipelines_and_kernels() -> None:
    said = python(LEAN, DDX_KERNELS="auto", TRITON_INTERPRET="0").stdout
    assert "BEFORE []" in said
    assert "AFTER []" in said
