"""One stage of a teacher's training: a loop that checkpoints, resumes by the same call, and writes metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddx.checkpoints.folder import Saved, Snapshot, latest_checkpoint, load_checkpoint, save_checkpoint
from ddx.checkpoints.shares import restored
from ddx.progress import Progress
from ddx.training.divergence import LostSteps, diverged
from ddx.training.ema import EMA
from ddx.training.interruption import StopSignal, tells_what_is_saved
from ddx.training.optimizer import guarded_step, measure_clip, set_learning_rate
from ddx.training.tracking import Clock, Metrics

KEEP_CHECKPOINTS = 2
MAX_LOST_STEPS = 20  # in a row


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage trains and how. `loss` draws its batch from the generator alone, so a resumed run repeats it."""

    name: str
    network: nn.Module
    optimizers: Mapping[str, Optimizer]
    ema: EMA
    loss: Callable[[torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
    learning_rate: float
    schedule: Callable[[int], float]
    steps: int
    batch_size: int
    clip_norm: float
    seed: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int = 0
    evaluate: Callable[[], Mapping[str, float]] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def run_stage(stage: Stage, folder: Path, progress: Progress) -> float:
    """Train to the stage's last step, from its newest checkpoint in `folder` if there is one; return its seconds.

    Afterwards the network holds the averaged weights. Raises Interrupted after a signal, the state saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(folder)
    stage.network.zero_grad()  # what an earlier stage left on now frozen parts would count in the norm
    step, skipped = 0, torch.zeros((), device=next(stage.network.parameters()).device)
    newest = latest_checkpoint(folder / "checkpoints")
    if newest is not None:
        step = _restore(stage, load_checkpoint(newest), skipped)
    clock = Clock(metrics.resume(step))
    progress.start(stage.name, stage.steps, "steps")
    progress.advance(step)
    losses: list[Tensor] = []
    due = False
    lost, limit = LostSteps(skipped.device), min(MAX_LOST_STEPS, stage.steps)
    with StopSignal(progress.log) as stop, tells_what_is_saved(folder / "checkpoints"):
        while step < stage.steps:
            before = skipped.clone()
            loss, parts, norm = take_step(stage, step, skipped)
            lost.add(None)
            lost.end_step(skipped - before)
            losses.append(loss)
            step += 1
            progress.advance(1)
            if step % stage.log_every == 0 or step == stage.steps:
                line: dict[str, float] = {"step": step, "images": step * stage.batch_size}
                line["loss"] = float(torch.stack(losses).mean())
                line |= {name: float(value) for name, value in parts.items()}
                line |= {"grad_norm": float(norm), "learning_rate": stage.learning_rate * stage.schedule(step - 1)}
                line |= {"skipped_steps": float(skipped), "seconds": clock.seconds()}
                line["images_per_s"] = clock.rate(len(losses) * stage.batch_size)
                metrics.write(line)
                progress.advance(0, loss=line["loss"])
                losses.clear()
            due = due or stop.requested or step % stage.checkpoint_every == 0 or step == stage.steps
            if due or step % limit == 0:
                in_a_row = int(lost.in_a_row)
                if in_a_row >= limit:
                    raise diverged(step, in_a_row, folder / "checkpoints", "the same command")
            if due and (step == stage.steps or not in_a_row):
                due = False
                save_checkpoint(folder / "checkpoints", step, _snapshot(stage, step, skipped), keep=KEEP_CHECKPOINTS)
            if stop.requested:
                raise KeyboardInterrupt
            if stage.evaluate is not None and stage.evaluate_every and step % stage.evaluate_every == 0:
                scores = stage.evaluate()
                metrics.write({"step": step, **scores, "seconds": clock.seconds()})
                progress.log(f"{stage.name} step {step}: overall {scores['overall']:.3f}")
    progress.finish()
    stage.ema.copy_to(stage.network)
    return clock.seconds()


def take_step(stage: Stage, step: int, skipped: Tensor) -> tuple[Tensor, Mapping[str, Tensor], Tensor]:
    """Take one optimiser step unless its gradient is not finite; return loss, its parts and the gradient's norm."""
    generator = torch.Generator().manual_seed(stage.seed * 1_000_003 + step)
    loss, parts = stage.loss(generator)
    for optimizer in stage.optimizers.values():
        optimizer.zero_grad()
    torch.autograd.backward(loss)
    clip = measure_clip([value.grad for value in stage.network.parameters()], stage.clip_norm)
    for index, optimizer in enumerate(stage.optimizers.values()):
        set_learning_rate(optimizer, stage.learning_rate, stage.schedule(step))
        guarded_step(optimizer, clip, skipped if index == 0 else torch.zeros_like(skipped))
    stage.ema.update(stage.batch_size)
    return loss.detach(), parts, clip.norm


def _snapshot(stage: Stage, step: int, skipped: Tensor) -> Snapshot:
    average = stage.ema.state_dict()
    tensors = {"network": stage.network.state_dict(), "ema": average["shadow"]}
    for name, optimizer in stage.optimizers.items():
        tensors[name] = {
            f"{index}.{key}": value
            for index, entry in optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }
    return Snapshot(tensors, {"step": step, "num_images": average["num_images"], "skipped": float(skipped)})


@torch.no_grad()
def _restore(stage: Stage, snapshot: Saved, skipped: Tensor) -> int:
    stage.network.load_state_dict(dict(snapshot.tensors["network"]))
    stage.ema.load_state_dict({"num_images": snapshot.state["num_images"], "shadow": snapshot.tensors["ema"]})
    for name, optimizer in stage.optimizers.items():
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in snapshot.tensors[name].items():
            index, _, entry = key.partition(".")
            parameter = parameters[int(index)]
            entries.setdefault(int(index), {})[entry] = restored(value, parameter, torch.device("cpu"))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    skipped.fill_(float(snapshot.state["skipped"]))
    return int(snapshot.state["step"])
