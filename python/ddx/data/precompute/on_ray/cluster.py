"""Ray: a connection, what a task of it takes, and events of tasks as they come. Nothing else of ddx imports Ray."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ddx.data.precompute.on_ray.tasks import Began, Event, Failed, Order, Unfit
from ddx.errors import DdxError, first_line

Handle = Any  # the generator of a task's events
Step = Callable[..., Iterator[Event]]
MOST_CPUS = 4.0
SECONDS_TO_STOP = 60.0


@dataclass(frozen=True)
class Needs:
    """What a task takes of a machine."""

    cpus: float
    gpus: float

    def slots(self, resources: Mapping[str, float]) -> int:
        """How many tasks a machine of these resources runs at once."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(resources.get(name, 0.0) / value) for name, value in wanted.items() if value)

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.cpus:g} core{'s' if self.cpus != 1 else ''}{gpus}"


class Cluster:
    """A connection to Ray, and the tasks that this process has started there."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def needs(self, cpus: float | None, gpus: float | None, *, encodes: bool) -> Needs:
        """The resources of a task: what is given; else a GPU with its share of the cores, or a few cores."""
        machines = [node["Resources"] for node in self._alive() if node["Resources"].get("CPU", 0.0) >= 1.0]
        if gpus is None:
            gpus = 1.0 if encodes and any(machine.get("GPU", 0.0) >= 1.0 for machine in machines) else 0.0
        if cpus is None and gpus:
            with_gpus = [machine for machine in machines if machine.get("GPU", 0.0) >= gpus]
            shares = [machine["CPU"] * gpus / machine["GPU"] for machine in with_gpus]
            cpus = max(1.0, float(int(min(shares, default=1.0))))
        elif cpus is None:
            cpus = min([MOST_CPUS, *(machine["CPU"] for machine in machines)])
        return Needs(cpus, gpus)

    def slots(self, needs: Needs, avoid: Iterable[str] = ()) -> int:
        """How many such tasks run at once now, without those nodes."""
        left = set(avoid)
        return sum(needs.slots(node["Resources"]) for node in self._alive() if node["NodeID"] not in left)

    def start(self, step: Step, order: Order, *arguments: Any, needs: Needs, avoid: Sequence[str] = ()) -> Handle:
        """Run a step on a node of the cluster, one that is not to be avoided if there is any."""
        wanted = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        task = self._ray.remote(num_returns="streaming", max_retries=0, **wanted)(_run)
        if avoid and self.slots(needs, avoid):
            task = task.options(label_selector={"ray.io/node-id": f"!in({','.join(sorted(avoid))})"})
        return task.remote(step, order, *arguments)

    def next_event(self, handles: Sequence[Handle]) -> tuple[Handle, Event | None] | None:
        """Wait for the next event of one of the tasks, None after its last; None alone when none came for a second."""
        ready, _ = self._ray.wait(list(handles), num_returns=1, timeout=1.0, fetch_local=False)
        if not ready:
            return None
        handle = ready[0]
        try:
            event: Event = self._ray.get(next(handle))
        except StopIteration:
            return handle, None
        except self._ray.exceptions.RayError as error:
            return handle, Failed(_in_words(self._ray, error))
        return handle, event

    def stop(self, handles: Sequence[Handle]) -> None:
        """Interrupt the tasks, and wait until those that run have written what they have."""
        for handle in handles:
            self._ray.cancel(handle)
        left = list(handles)
        while left:
            ready, _ = self._ray.wait(left, num_returns=1, timeout=SECONDS_TO_STOP, fetch_local=False)
            if not ready:
                return
            try:
                self._ray.get(next(ready[0]))
            except (StopIteration, self._ray.exceptions.RayError):
                left.remove(ready[0])

    def _alive(self) -> list[Any]:
        return [node for node in self._ray.nodes() if node["Alive"]]


def load_ray() -> Any:
    """Return the module. DdxError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError as error:
        raise DdxError("Ray is not installed", hint="pip install 'ddx[ray]'") from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Connect to the cluster at this address; without one to that of this machine, or to one that is started for this.

    Raises DdxError where Ray is not installed, or no cluster answers.
    """
    ray = load_ray()
    if ray.is_initialized():  # by whoever calls this function
        yield Cluster(ray)
        return
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises its own kinds, and bare ones
        where = "no cluster of Ray could be started here" if address is None else f"no cluster of Ray at {address}"
        raise DdxError(
            f"{where}: {first_line(error)}",
            hint="`ray status` shows whether one runs; `ray start --head` starts one on this machine",
        ) from error
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _run(step: Step, order: Order, *arguments: Any) -> Iterator[Event]:
    import ray

    yield Began(ray.get_runtime_context().get_node_id(), socket.gethostname())
    yield from (event for event in step(order, *arguments))  # Ray sends values in, which only a generator takes


def _in_words(ray: Any, error: Exception) -> Unfit:
    """What Ray says of a task that has not ended by itself."""
    if isinstance(error, ray.exceptions.RayTaskError):  # before the task's own code began
        lacks = "No module named" in str(error)
        cure = "install ddx on all machines of the cluster" if lacks else "Ray's log of the task has more"
        return Unfit(first_line(error.cause or error), hint=cure)
    kinds = {
        "OutOfMemoryError": "its machine ran out of memory",
        "NodeDiedError": "its machine is gone",
        "WorkerCrashedError": "its process died",
        "LocalRayletDiedError": "its machine is gone",
    }
    said = kinds.get(type(error).__name__) or f"{type(error).__name__}: {first_line(error)}"
    return Unfit(said, hint="Ray's log of the task has more; --ray-cpus 8 runs fewer tasks at once on a machine")
