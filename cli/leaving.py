"""How a process ends that is one of several: without Python's own shutdown, after all that asked to be called at it.

gloo's threads ask for the interpreter when they let go of the tensors of the last collective. Before Python 3.14 a
thread that asks while the interpreter shuts down is ended within its destructor, and the process dies by SIGABRT: to
torchrun a run that is finished would be one that failed.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Exit with a code; torchrun's processes without the interpreter's shutdown."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or sys.version_info >= (3, 14):
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does first: it waits for threads,
    atexit._run_exitfuncs()  # and calls what was registered
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whose reader has gone
            stream.flush()
    os._exit(code)
