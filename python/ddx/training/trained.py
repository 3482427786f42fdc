"""A network that a run trains, with its optimiser and what of it a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddx.checkpoints.shares import Spread, copy_all_into, restored
from ddx.methods.base import NetworkSpec
from ddx.training.balance import LossBalance
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks, replicate
from ddx.training.divergence import LostSteps
from ddx.training.host_adamw import HostAdamW
from ddx.training.optimizer import make_optimizer


class Trained:
    """A network with its optimiser; `replica` is the network as data parallelism sees it."""

    def __init__(self, spec: NetworkSpec, module: nn.Module, config: DistillConfig, ranks: Ranks) -> None:
        self.spec = spec
        self.module = module.train()  # a tree around a frozen backbone comes evaluating
        self.replica = replicate(module, ranks)
        self.named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        self.parameters = [value for _, value in self.named]
        self.learning_rate = config.learning_rate * spec.learning_rate_scale
        self.num_steps = 0
        self.optimizer = make_optimizer(self.parameters, self.learning_rate, config)
        self.lost = LostSteps(ranks.device)
        self.balance = LossBalance(self.named, config, ranks)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's state by parameter name and key."""
        state = self.optimizer.state
        return {f"{name}|{key}": value for name, p in self.named for key, value in state.get(p, {}).items()}

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor | Spread]) -> None:
        """Restore what `optimizer_tensors` returned, each value where the optimiser itself keeps it."""
        named = dict(self.named)
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        for label, value in tensors.items():
            name, _, key = label.rpartition("|")
            parameter = named[name]
            state = self.optimizer.state.setdefault(parameter, {})
            if isinstance(self.optimizer, HostAdamW):
                state[key] = self.optimizer.restored(key, value, parameter)
                continue
            group = groups[id(parameter)]
            # torch keeps the count of steps on the host, where it is read in every step, unless the device counts
            on_host = key == "step" and not (group.get("fused") or group.get("capturable"))
            state[key] = restored(value, parameter, torch.device("cpu") if on_host else parameter.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights that training moves, and the buffers: without a frozen backbone, which others hold too."""
        frozen = {name for name, _ in self.module.named_parameters()} - {name for name, _ in self.named}
        return {name: value for name, value in self.module.state_dict().items() if name not in frozen}

    def load_tensors(self, tensors: Mapping[str, Tensor | Spread]) -> None:
        """Restore what `tensors` returned. RuntimeError if it is of another network."""
        live = self.tensors()
        if tensors.keys() != live.keys():
            odd = sorted(tensors.keys() ^ live.keys())
            raise RuntimeError(f"{len(odd)} of its weights are in one of the two only, such as {odd[0]}")
        copy_all_into(live, tensors)

    def activate(self, active: bool) -> None:
        """Let its weights take gradients and the network train, or neither."""
        if self.module.training != active:
            self.module.train(active)
            for parameter in self.parameters:
                parameter.requires_grad_(active)
