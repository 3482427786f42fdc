"""What became of the rows of a store: examples of each failure, and how the hosts of the pictures answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ddx.data.rows import OK

COLUMNS = ("row", "key", "source", "caption", "status", "detail")
NUM_EXAMPLES = 3
NUM_HOSTS = 20
# Hosts that are counted at once; a web crawl has millions of them, nearly all with a row or two.
MAX_HOSTS = 100_000
# Failures that may pass by themselves, as `--retry` takes them.
MAY_PASS = ("timeout", "reset", "connect", "dns", "http_408", "http_429", "http_5*")

_HOST = r"(?i)^https?://(?:[^/?#\\]*@)?(?P<host>\[[^\]/]*\]|[^/?#\\:]+)"


def read_ledger(tables: Iterable[pa.Table], max_hosts: int = MAX_HOSTS) -> dict[str, Any]:
    """Examples of each failure and the rows by host, of tables with COLUMNS, in memory bounded by `max_hosts`.

    `examples`: by status the first rows that failed so, with the other COLUMNS. `hosts`: `worst`, those with the most
    failures (`host`, `rows`, `ok`, `failed`, `most`: the most frequent failure or None); `others`, the rest summed,
    None if there is none (`hosts`, `rows`, `ok`, `failed`); `exact`. Beyond `max_hosts` the half with the fewest
    failures is summed up before all rows are seen: then `exact` is false, numbers of a host may be too low, and that
    of the others is not known (None). Rows without an http(s) URL have no host.
    """
    examples: dict[str, list[dict[str, Any]]] = {}
    hosts = _Hosts(max_hosts)
    for table in tables:
        _add_examples(examples, table.filter(pc.not_equal(table["status"], OK)))
        hosts.add(table)
    return {"examples": dict(sorted(examples.items())), "hosts": hosts.report()}


def cure(failed: Mapping[str, int]) -> str:
    """What to do about failed rows by status; empty when none of them may pass by itself."""
    matching = {pattern: [status for status in failed if fnmatchcase(status, pattern)] for pattern in MAY_PASS}
    count = sum(failed[status] for statuses in matching.values() for status in statuses)
    if not count:
        return ""
    flags = [f"--retry '{name}'" if "*" in name else f"--retry {name}" for name, found in matching.items() if found]
    return f"{count} of them may pass at another time: ddx precompute … {' '.join(flags)}"


def _add_examples(examples: dict[str, list[dict[str, Any]]], failed: pa.Table) -> None:
    for status in pc.unique(failed["status"]).to_pylist():
        known = examples.setdefault(status, [])
        if len(known) < NUM_EXAMPLES:
            rows = failed.filter(pc.equal(failed["status"], status)).slice(0, NUM_EXAMPLES - len(known))
            known += rows.select(["row", "key", "source", "caption", "detail"]).to_pylist()


class _Hosts:
    """Rows by host and status; those that are given up are summed in `_others`."""

    def __init__(self, max_hosts: int) -> None:
        self._max_hosts = max_hosts
        self._counts: dict[str, Counter[str]] = {}
        self._others = Counter[str]()
        self._exact = True

    def add(self, table: pa.Table) -> None:
        names = pc.ascii_lower(pc.struct_field(pc.extract_regex(table["source"], _HOST), "host"))
        pairs = pa.table({"host": names, "status": table["status"]}).filter(pc.is_valid(names))
        counted = pairs.group_by(["host", "status"]).aggregate([([], "count_all")])
        columns = (counted[name].to_pylist() for name in ("host", "status", "count_all"))
        for host, status, count in zip(*columns, strict=True):
            self._counts.setdefault(host, Counter())[status] += count
        if len(self._counts) > self._max_hosts:
            self._exact = False
            self._keep(self._max_hosts // 2)

    def report(self) -> dict[str, Any]:
        num_hosts = len(self._counts)
        self._keep(NUM_HOSTS)
        worst = [{"host": host, **_summed(counts), "most": _most(counts)} for host, counts in self._counts.items()]
        others = None
        if self._others:
            others = {"hosts": num_hosts - len(worst) if self._exact else None, **_summed(self._others)}
        return {"worst": worst, "others": others, "exact": self._exact}

    def _keep(self, num: int) -> None:
        """Give up all hosts but those with the most failures; of equal ones, those with the most rows stay."""

        def order(item: tuple[str, Counter[str]]) -> tuple[int, int, str]:
            host, counts = item
            return counts[OK] - counts.total(), -counts.total(), host

        ordered = sorted(self._counts.items(), key=order)
        for _, counts in ordered[num:]:
            self._others.update(counts)
        self._counts = dict(ordered[:num])


def _summed(counts: Counter[str]) -> dict[str, int]:
    return {"rows": counts.total(), "ok": counts[OK], "failed": counts.total() - counts[OK]}


def _most(counts: Counter[str]) -> str | None:
    """The most frequent failure; of equal ones the first in the alphabet."""
    return min((status for status in counts if status != OK), key=lambda s: (-counts[s], s), default=None)
