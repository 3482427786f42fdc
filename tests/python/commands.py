"""`ddx …` as a process of its own that is forked from one with everything imported: a start costs no imports.

A command as a user's shell starts it, from nothing, is what tests/python/end_to_end has.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from watchdog import WATCHDOG_S

IMPORTED = (
    *("ddx.cli.precompute", "ddx.cli.merge", "ddx.data.precompute", "ddx.data.merge", "ddx.teachers.families.sana"),
    *("diffusers.pipelines.sana.pipeline_sana", "diffusers.models.autoencoders.autoencoder_dc"),
    *("diffusers.models.transformers.sana_transformer", "transformers.models.gemma2.modeling_gemma2"),
)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(IMPORTED))


class Command:
    """What tests ask of a `subprocess.Popen` with pipes; its output goes to files in `folder`."""

    def __init__(
        self,
        line: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        largest_file: int | None = None,
    ) -> None:
        self._files = folder / "stdout", folder / "stderr"
        arguments = (list(line), self._files, dict(environment or os.environ), os.getcwd(), largest_file)
        self._process = _context.Process(target=_run, args=arguments)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = WATCHDOG_S) -> tuple[str, str]:
        """Wait for its end; return what it wrote to stdout and stderr."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the watchdog: it never ended"
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._files)
        return out, err


def _run(
    line: list[str], files: tuple[Path, Path], environment: dict[str, str], folder: str, largest_file: int | None
) -> None:
    for number, path in enumerate(files, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    import torch

    from ddx.cli import main

    torch.set_num_threads(1)  # as in the tests' own process: sums are rounded by how they are cut up
    sys.exit(main.run(line))
