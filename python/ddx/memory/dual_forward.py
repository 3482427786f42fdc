"""What a dual forward takes, where torch's forward mode cannot run: on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddx.memory.ledger import Ledger
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition


def counted_twice(ledger: Ledger, in_full: Callable[[], AbstractContextManager[None]]) -> Any:
    """Return what stands in for :meth:`Teacher.predict_dual`: a plain pass, and each of its temporaries once more.

    A dual number is a value and its tangent, of the same shape. `in_full`: a context in which no block is left out.
    """

    @torch.no_grad()
    def predict_dual(
        self: Teacher, network: nn.Module, x_t: Tensor, dx_t: Tensor, t: Tensor, dt: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        before, start = ledger.peak, ledger.begin_span()
        with in_full(), sdpa_kernel(SDPBackend.MATH):  # the form of attention that the dual forward takes
            found = self.predict(network, x_t, t, condition)
        highest, temporaries = ledger.peak, ledger.peak.num_bytes - start.now
        left = ledger.now - start.now
        ledger.peak = before
        ledger.bump({highest.during: 2 * temporaries - left})
        return found, torch.empty_like(found)

    return predict_dual
