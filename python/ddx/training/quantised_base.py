"""A frozen base in 8 or 4 bits, which the networks of a low-rank run share."""

from __future__ import annotations

import torch

from ddx.networks.quantised import quantise
from ddx.teachers.base import Teacher
from ddx.teachers.blocks import blocks_of


def quantise_teacher(teacher: Teacher, bits: int) -> None:
    """Open the teacher's denoiser with the weights of its blocks in 8 or 4 bits.

    Networks that share its weights must be made of it afterwards. Raises UsageError where 4 bits need a package.
    """
    home, teacher.home = teacher.home, torch.device("cpu")
    try:
        network = teacher.network()
    finally:
        teacher.home = home
    quantise(network, blocks_of(network), bits, teacher.device)
    teacher.fast(network)  # chosen by the device of its first weights
