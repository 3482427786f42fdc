"""A process that is one of several ends without the interpreter's shutdown, and loses nothing by it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ENDS = """
import atexit, sys, threading, time
from ddx.cli.leaving import leave

class Last:  # what the interpreter's own shutdown would still call
    def __del__(self):
        print("shut down", flush=True)

def later():
    time.sleep(0.2)
    print("a thread ended")

last = Last()
atexit.register(print, "registered")
threading.Thread(target=later).start()
print("not flushed yet", end=" ")
leave(3)
"""


@pytest.mark.parametrize("world", ["1", "2"])
def test_threads_and_what_was_registered_come_first(world: str) -> None:
    environment = {**os.environ, "WORLD_SIZE": world}
    done = subprocess.run([sys.executable, "-c", ENDS], env=environment, capture_output=True, text=True)
    said = "not flushed yet a thread ended\nregistered\n"
    at_once = world == "2" and sys.version_info < (3, 14)
    assert (done.returncode, done.stdout, done.stderr) == (3, said if at_once else said + "shut down\n", "")
