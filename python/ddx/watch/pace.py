"""How often to look: at most so often that all looks together stay within a share of the time of training."""

from __future__ import annotations

import math


class Pace:
    """Looks at the first and the last of `total` steps, and about every `every` between: fewer where they are dear.

    `cost`: the share of the training time that all looks may take. A look that has not been timed yet is taken.
    """

    def __init__(self, every: int, cost: float, total: int) -> None:
        self.every, self.cost, self.total = every, cost, total
        self.train_seconds, self.train_steps = 0.0, 0
        self.look_seconds: list[float] = []
        self.last = -1

    def trained(self, seconds: float, steps: int) -> None:
        """Count steps and the seconds that they took."""
        self.train_seconds += seconds
        self.train_steps += steps

    def looked(self, step: int, seconds: float) -> None:
        """Count a look."""
        self.last = step
        self.look_seconds.append(seconds)

    def due(self, step: int) -> bool:
        """Return whether to look after `step` steps."""
        if step == self.last:
            return False
        return step in (0, self.total) or step - max(self.last, 0) >= self.interval

    @property
    def interval(self) -> int:
        """Steps between two looks, as far as is known by now."""
        if not self.look_seconds or not self.train_steps:
            return self.every
        each = sorted(self.look_seconds)[len(self.look_seconds) // 2]
        allowed = self.cost * self.train_seconds / self.train_steps * self.total / max(each, 1e-9)
        between = max(math.floor(allowed) - 1, 1)  # the first look is at no interval's end
        return max(self.every, math.ceil(self.total / between))

    @property
    def share(self) -> float | None:
        """The seconds of all looks over those of training, None before the first step."""
        return sum(self.look_seconds) / self.train_seconds if self.train_seconds > 0.0 else None
