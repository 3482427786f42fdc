"""What a checkpoint keeps of a trainer, and how one goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddx.checkpoints.folder import Saved, Snapshot
from ddx.checkpoints.shares import copy_all_into
from ddx.errors import DdxError
from ddx.methods.base import Method
from ddx.training.ema import EMA
from ddx.training.trained import Trained

METHOD = "method"


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """All that changes in a trainer; `averages` by the names that a checkpoint has for them."""

    trained: Mapping[str, Trained]
    averages: Mapping[str, EMA]
    method: Method
    skipped: Tensor
    scaler: torch.amp.GradScaler

    def snapshot(self) -> Snapshot:
        """Return all tensors and counters; the tensors are live, not copies."""
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, trained in self.trained.items():
            tensors[name] = trained.tensors()
            tensors[f"{name}.optimizer"] = trained.optimizer_tensors()
            tensors[f"{name}.balance"] = trained.balance.state()
        for name, average in self.averages.items():
            tensors[name] = average.parameters()
        tensors[METHOD] = self.method.state()
        tensors = {group: values for group, values in tensors.items() if values}
        state = {
            "num_steps": {name: trained.num_steps for name, trained in self.trained.items()},
            "num_images": {name: average.num_images for name, average in self.averages.items()},
            "skipped": int(self.skipped),
            "loss_scale": self.scaler.state_dict(),
        }
        return Snapshot(tensors, state)

    def restore(self, saved: Saved) -> None:
        """Continue from a snapshot or a checkpoint. DdxError if it belongs to other networks."""
        try:
            for name, trained in self.trained.items():
                trained.load_tensors(saved.tensors[name])
                trained.load_optimizer_tensors(saved.tensors.get(f"{name}.optimizer", {}))
                copy_all_into(trained.balance.state(), saved.tensors.get(f"{name}.balance", {}))
                trained.num_steps = int(saved.state["num_steps"][name])
            for name, average in self.averages.items():
                images = saved.state["num_images"][name]
                average.load_state_dict({"num_images": images, "shadow": saved.tensors[name]})
            copy_all_into(self.method.state(), saved.tensors.get(METHOD, {}))
            self.skipped.fill_(saved.state["skipped"])
            if saved.state.get("loss_scale"):  # empty but with fp16
                self.scaler.load_state_dict(saved.state["loss_scale"])
        except (KeyError, RuntimeError) as error:
            raise DdxError(
                f"the checkpoint does not fit this run's networks: {error}",
                hint="give --out PATH to start a new student",
            ) from error
