"""The command of `--engine ray`: what it asks of a cluster, start to end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.data.config import PrecomputeConfig
from ddx.data.precompute.append import require_store
from ddx.data.precompute.on_ray.cluster import connected, load_ray
from ddx.data.precompute.on_ray.crew import Crew
from ddx.data.precompute.on_ray.tasks import Began, Failed, Opened, Said, Unfit, finish, order_of, prepare
from ddx.data.precompute.plan import Plan, make_plan
from ddx.data.ranks import Rank, already_written, claim, share_lock
from ddx.errors import DdxError, UsageError

if TYPE_CHECKING:
    from ddx.data.precompute.keeping import EncodeKeeping
    from ddx.data.precompute.on_ray.cluster import Handle, Step
    from ddx.progress import Progress
    from ddx.workspace import Workspace

REASONS_SHOWN = 5


def precompute_on_ray(
    config: PrecomputeConfig,
    sources: Sequence[str],
    *,
    workspace: Workspace | None,
    progress: Progress,
    keeping: EncodeKeeping | None,
) -> Path:
    """`precompute` by tasks of a Ray cluster. The plan is made here, all that computes runs there.

    Raises what `precompute` raises, and DdxError naming the parts that failed each time; the others are written then.
    """
    if Rank.here().world > 1:
        raise UsageError("--engine ray shares the parts out by itself", hint="call it once, without torchrun")
    load_ray()  # before minutes of preparation
    plan = make_plan(config, sources, workspace)
    progress.log(plan.reads)
    for line in plan.input.left_out:
        progress.log(line)
    if config.stage != "fetch":
        require_store(plan)
    root = str(workspace.root) if workspace is not None else ""
    with connected(config.ray_address) as cluster:
        needs = cluster.needs(config.ray_cpus, config.ray_gpus, encodes=config.stage != "fetch")
        order = order_of(config, plan.sources, root, keeping, math.ceil(needs.cpus))
        slots = cluster.slots(needs)
        more = "" if slots else "; no machine of the cluster has that, so it has to grow"
        progress.log(f"Ray: {slots} tasks at once, each with {needs}{more}")
        crew = Crew(cluster, order, needs, config.ray_retries, progress)
        with claim(plan.store, share_lock(0)) as mine:
            if not mine:
                raise already_written(plan.store)
            _write(crew, plan, _alone(crew, prepare))
        _alone(crew, finish)
    return plan.store


def _write(crew: Crew, plan: Plan, opened: Opened) -> None:
    """Have the missing parts written. DdxError when some failed each time."""
    todo, progress = opened.todo, crew.progress
    if not todo:
        return
    if len(todo) < opened.num_parts:
        done = opened.num_parts - len(todo)
        progress.log(f"{plan.store} has {done} of {opened.num_parts} parts; going on with the rest")
    progress.start("fetch" if plan.config.stage == "fetch" else "precompute", opened.rows, "rows")
    try:
        crew.write(todo)
    except KeyboardInterrupt:
        progress.log(f"stopped after {len(crew.written)} of {len(todo)} parts; the same command goes on")
        raise
    progress.finish()
    if crew.failed:
        raise _failed(crew.failed, len(todo), 1 + crew.retries)


def _failed(failed: Mapping[int, str], num_parts: int, tries: int) -> DdxError:
    by_reason: dict[str, list[int]] = {}
    for part, reason in sorted(failed.items()):
        by_reason.setdefault(reason, []).append(part)
    shown = [
        f"part{'s' if len(parts) > 1 else ''} {', '.join(map(str, parts[:REASONS_SHOWN]))}"
        f"{', …' if len(parts) > REASONS_SHOWN else ''}: {reason}"
        for reason, parts in list(by_reason.items())[:REASONS_SHOWN]
    ]
    return DdxError(
        f"{len(failed)} of {num_parts} parts failed {tries} times each: {'; '.join(shown)}",
        hint="the others are written; the same command tries these again",
    )


def _alone(crew: Crew, step: Step) -> Opened:
    """Run a step that one task does for all, on another machine where one is gone or does not fit."""
    for tries in count(1):
        handle = crew.cluster.start(step, crew.order, needs=crew.needs, avoid=sorted(crew.unfit))
        try:
            node, outcome = _outcome(crew, handle)
        except BaseException:
            crew.cluster.stop([handle])
            raise
        if isinstance(outcome, Opened):
            return outcome
        if not isinstance(outcome, Unfit) or tries > crew.retries:
            raise outcome
        crew.progress.log(f"{outcome.message}; trying another machine")
        crew.unfit |= dict.fromkeys(node, outcome.message)
    raise AssertionError("it returns or raises")


def _outcome(crew: Crew, handle: Handle) -> tuple[list[str], Opened | DdxError]:
    """The node of a task, and how it ended; its lines are printed as they come."""
    node: list[str] = []
    outcome: Opened | DdxError = Unfit("a task of Ray ended without a word", hint="Ray's log of the task has more")
    while True:
        found = crew.cluster.next_event([handle])
        if found is None:
            continue
        event = found[1]
        if isinstance(event, Began):
            node = [event.node]
        elif isinstance(event, Said):
            crew.progress.log(event.line)
        elif isinstance(event, Opened):
            outcome = event
        elif isinstance(event, Failed):
            return node, event.error
        elif event is None:
            return node, outcome
