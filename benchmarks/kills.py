"""A precompute that is killed loses no finished part: SIGKILL again and again, then the store of a run left alone.

The input is URLs of a server on this machine, where about every third row fails. In a store's life the command is
started and killed after it has finished at least one more part, right after a part's record or inside the next part's
files, and so on; once complete, the failed rows have healed and the same happens to `--retry`. At its end each half
must equal, byte for byte, a store that was made in one go. Exits with 1 if anything is lost, twice or different.

Each command is a process of its own, forked from one that has imported torch and diffusers already: ten seconds of
imports a start would buy nothing here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from _environment import RESULTS, machine, write_result
from _failing_server import NUM_PARTS, NUM_ROWS, PART_ROWS, RETRY, FailingServer, serve
from _store_contents import (
    Part,
    differing,
    duplicated_rows,
    lost,
    lost_in_replacement,
    read_parts,
    records,
    unfinished,
)

KILLS_OF_A_LIFE = 20
KILLS_OF_RETRY = 6
PATIENCE_S = 300.0
MOMENTS = ("at a record", "a little later", "inside a part", "inside a part")
# Every row has a slot: rows that trickle would keep those that wait for a further try out for ever.
SLOTS = str(NUM_ROWS)
PRELOADED = (
    *("ddx.cli.precompute", "ddx.data.precompute.run", "ddx.teachers.families.sana", "zarr", "pyarrow.dataset"),
    *("diffusers.pipelines.sana.pipeline_sana", "transformers.models.gemma2.modeling_gemma2"),
)
OPTIONS = (
    *("--teacher", "sana-tiny", "--device", "cpu", "--batch-size", "3", "--part-rows", str(PART_ROWS)),
    *("--allow-private-hosts", "--idle-timeout-s", "2.5", "--total-timeout-s", "600"),
    *("--concurrency", SLOTS, "--per-host", SLOTS, "--retries", "2", "--backoff-s", "0.05", "--decode-threads", "2"),
)


@dataclass
class Counts:
    """What happened over all lives; the last three must stay 0."""

    kills: int = 0
    kills_in_retry: int = 0
    kills_by_moment: Counter[str] = field(default_factory=Counter)
    left_half_a_part: int = 0
    left_half_a_replacement: int = 0
    lives: int = 0
    lost_parts: int = 0
    duplicated_rows: int = 0
    differing_files: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills so far, {self.kills_in_retry} in a retry; {self.left_half_a_part} left half a part, "
            f"{self.left_half_a_replacement} half a replacement; {self.lost_parts} parts lost, "
            f"{self.duplicated_rows} rows twice, {self.differing_files} files differ"
        )


class Life:
    """One store, from nothing to complete, and on to complete without the failures that heal."""

    def __init__(self, bench: Bench, number: int) -> None:
        self.bench, self.counts = bench, bench.counts
        self.store = bench.folder / f"life-{number}.zarr"
        self.random = random.Random(number)

    def run(self, kills: int) -> None:
        """Kill that many times, and once more at either end if the process is not faster; look after each."""
        server, counts = self.bench.server, self.counts
        started = counts.kills
        in_retry = min(KILLS_OF_RETRY, max(1, kills // 3))
        server.healed = False
        while counts.kills - started < kills - in_retry and len(records(self.store)) < NUM_PARTS - 5:
            self._kill_at_work()
        self._kill_at_the_end()
        self._finish(self.bench.failed)

        server.healed = True
        while counts.kills - started < kills and len(self._to_renew()) > 8:
            self._kill_at_work("--retry")
        self._kill_at_the_end("--retry")
        self._finish(self.bench.healed, "--retry")
        counts.lives += 1
        shutil.rmtree(self.store)

    def _kill_at_work(self, *retry: str) -> None:
        """Kill after a new record, while later rows are still awaited."""
        if retry:
            self.bench.server.limit = PART_ROWS * self._to_renew()[5]
        else:
            self.bench.server.limit = PART_ROWS * (len(records(self.store)) + 2)
        moment = self.random.choice(MOMENTS)
        before, process = read_parts(self.store), self.bench.start(self.store, retry)
        self.bench.wait(process, lambda: self._is_ahead(before))
        if moment == "a little later":
            time.sleep(self.random.uniform(0, 0.1))
        elif moment == "inside a part":
            deadline = time.monotonic() + 1
            while not unfinished(self.store) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(self.random.uniform(0, 0.01))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise SystemExit(f"the run ended by itself with {process.exitcode}: {self.bench.log_tail()}")
        self._count(before, moment, *retry)

    def _kill_at_the_end(self, *retry: str) -> None:
        """Kill once the last part is done, before the rows are joined; not counted when the process is faster."""
        self.bench.server.limit = NUM_ROWS
        before, process = read_parts(self.store), self.bench.start(self.store, retry)
        target = self.bench.healed_parts if retry else self.bench.failed_parts
        self.bench.wait(process, lambda: records(self.store) == {part: of.record for part, of in target.items()})
        time.sleep(self.random.uniform(0, 0.02))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL and not (self.store / "rows.parquet").exists():
            self._count(before, "at the end", *retry)

    def _count(self, before: dict[int, Part], moment: str, *retry: str) -> None:
        counts, bench = self.counts, self.bench
        counts.kills += 1
        counts.kills_in_retry += bool(retry)
        counts.kills_by_moment[moment] += 1
        if retry:
            counts.left_half_a_replacement += unfinished(self.store)
            gone = lost_in_replacement(before, bench.failed_parts, bench.healed_parts, self.store)
        else:
            counts.left_half_a_part += unfinished(self.store)
            gone = lost(before, self.store)
        if gone:
            print(f"{self.store.name}: parts {gone} are lost after a kill {moment}", flush=True)
        counts.lost_parts += len(gone)

    def _finish(self, whole: Path, *retry: str) -> None:
        """Run to the end and compare."""
        before = read_parts(self.store)
        self.bench.complete(self.store, retry)
        if not retry:
            self.counts.lost_parts += len(lost(before, self.store))
        names = differing(self.store, whole)
        if names:
            print(f"{self.store.name}: {names} differ from {whole.name}", flush=True)
        self.counts.differing_files += len(names)
        self.counts.duplicated_rows += duplicated_rows(self.store)

    def _is_ahead(self, before: dict[int, Part]) -> bool:
        return any(part not in before or before[part].record != now for part, now in records(self.store).items())

    def _to_renew(self) -> list[int]:
        """Parts that a retry will change and has not changed yet."""
        now = records(self.store)
        return [part for part, target in self.bench.healed_parts.items() if now[part] != target.record]


class Bench:
    """The server, the stores that nothing disturbed, and the processes."""

    def __init__(self, folder: Path, server: FailingServer) -> None:
        self.folder, self.server, self.counts = folder, server, Counts()
        self.list, self.log = folder / "urls.parquet", folder / "log"
        server.write_list(self.list)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))
        self.failed, self.healed = folder / "failed.zarr", folder / "healed.zarr"
        self.complete(self.failed, ())
        server.healed = True
        self.complete(self.healed, ())
        self.failed_parts, self.healed_parts = read_parts(self.failed), read_parts(self.healed)

    def start(self, store: Path, retry: tuple[str, ...]) -> BaseProcess:
        """Start the command."""
        patterns = [word for status in RETRY if retry for word in ("--retry", status)]
        line = ["precompute", str(self.list), "--out", str(store), *OPTIONS, *patterns]
        process = self._context.Process(target=command, args=(line, str(self.log)), daemon=True)
        process.start()
        return process

    def complete(self, store: Path, retry: tuple[str, ...]) -> None:
        """Run the command to its end."""
        self.server.limit = NUM_ROWS
        process = self.start(store, retry)
        process.join(PATIENCE_S)
        if process.exitcode != 0:
            raise SystemExit(f"{store} was not completed ({process.exitcode}): {self.log_tail()}")

    def wait(self, process: BaseProcess, done: Callable[[], bool]) -> None:
        """Wait until something is so, or the process has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while not done() and process.is_alive():
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing happens any more: {self.log_tail()}")
            time.sleep(0.002)

    def log_tail(self) -> str:
        """The last lines that a command printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


def command(line: list[str], log: str) -> None:
    """Be `ddx …`."""
    from ddx.cli.main import main

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    main(line)


def main() -> None:
    """Live, kill, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill, at least")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    arguments = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"})
    environment, began = machine(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serve() as server:
        bench = Bench(Path(folder), server)
        counts = bench.counts
        while counts.kills < arguments.kills:
            Life(bench, counts.lives).run(min(KILLS_OF_A_LIFE, arguments.kills - counts.kills))
            print(f"life {counts.lives}, {time.monotonic() - began:.0f} s: {counts}", flush=True)
    result = {**vars(counts), "rows_of_a_store": NUM_ROWS, "parts_of_a_store": NUM_PARTS}
    print(f"wrote {write_result('kills', result, environment, arguments.out)}")
    sys.exit(1 if counts.lost_parts or counts.duplicated_rows or counts.differing_files else 0)


if __name__ == "__main__":
    main()
