"""Parts become tasks of a cluster, and the parts of a task that fails become tasks again, elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddx.data.precompute.on_ray.tasks import Began, Event, Failed, Opened, Order, Wrote, work

if TYPE_CHECKING:
    from ddx.data.precompute.on_ray.cluster import Cluster, Handle, Needs
    from ddx.errors import DdxError
    from ddx.progress import Progress

# A process on a GPU ends with its task, and loads the encoders again for the next one: 64 parts take minutes.
PARTS_A_TASK = {True: 64, False: 8}
TASKS_A_SLOT = 4  # so that the last tasks end at about the same time
TASKS_AT_ONCE = 1000  # that Ray knows of; what waits there is what makes a cluster grow
REASONS_SHOWN = 5


@dataclass
class Task:
    """Parts in order, and what became of the attempts so far; `tries` of its first part, or of opening the store."""

    parts: tuple[int, ...]
    tries: int = 0
    avoid: frozenset[str] = frozenset()
    began: Began | None = None
    opened: bool = False


@dataclass
class Crew:
    """The tasks of one run. `failed`: the reason of each part that failed for good."""

    cluster: Cluster
    order: Order
    needs: Needs
    retries: int
    progress: Progress
    waiting: deque[Task] = field(default_factory=deque)
    running: dict[Handle, Task] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)  # nodes on which the store could not be opened, and why
    rows: dict[str, int] = field(default_factory=lambda: {"ok": 0, "failed": 0})

    def write(self, todo: Sequence[int]) -> None:
        """Have all these parts written; what fails for good is in `failed`."""
        slots = max(1, self.cluster.slots(self.needs))
        most = PARTS_A_TASK[self.needs.gpus > 0]
        size = min(most, max(1, math.ceil(len(todo) / (TASKS_A_SLOT * slots))))
        self.waiting.extend(Task(tuple(todo[start : start + size])) for start in range(0, len(todo), size))
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < TASKS_AT_ONCE:
                    self._start(self.waiting.popleft())
                if found := self.cluster.next_event(list(self.running)):
                    self._take(*found)
        except BaseException:
            self.progress.finish()
            self.cluster.stop(list(self.running))
            raise

    def _start(self, task: Task) -> None:
        avoid = task.avoid | self.unfit.keys()
        handle = self.cluster.start(work, self.order, task.parts, needs=self.needs, avoid=sorted(avoid))
        self.running[handle] = task

    def _take(self, handle: Handle, event: Event | None) -> None:
        task = self.running[handle]
        if isinstance(event, Began):
            task.began = event
        elif isinstance(event, Opened):
            task.opened = True
        elif isinstance(event, Wrote):
            self._count(event)
        elif isinstance(event, Failed):
            del self.running[handle]
            self._try_again(task, event.error)
        elif event is None:
            del self.running[handle]

    def _count(self, wrote: Wrote) -> None:
        if wrote.part in self.written:
            return
        self.written.add(wrote.part)
        self.rows["ok"] += wrote.ok
        self.rows["failed"] += wrote.failed
        nodes = [task.began.node for task in self.running.values() if task.began is not None]
        stats = {**self.rows, "tasks": len(nodes), "machines": len(set(nodes))}
        self.progress.advance(wrote.ok + wrote.failed, **stats)

    def _try_again(self, task: Task, error: DdxError) -> None:
        """Put what is left of a task into the queue: the part that it stopped at alone, and those behind it."""
        left = tuple(part for part in task.parts if part not in self.written)
        if not left:
            return
        where = "a machine" if task.began is None else task.began.host
        node = frozenset() if task.began is None else frozenset({task.began.node})
        retry = dataclasses.replace(task, avoid=task.avoid | node, began=None, opened=False)
        if not task.opened:
            for name in node - self.unfit.keys():
                self.unfit[name] = error.message
                self.progress.log(f"{where} takes no part: {error.message}")
            self._again_or_never(dataclasses.replace(retry, parts=left, tries=task.tries + 1), error)
            return
        self.progress.log(f"{where}, part {left[0]}: {error.message}")
        self._again_or_never(dataclasses.replace(retry, parts=left[:1], tries=task.tries + 1), error)
        if left[1:]:
            self.waiting.appendleft(dataclasses.replace(retry, parts=left[1:], tries=0))

    def _again_or_never(self, task: Task, error: DdxError) -> None:
        if task.tries <= self.retries:
            self.waiting.append(task)
        else:
            self.failed |= dict.fromkeys(task.parts, error.message)
