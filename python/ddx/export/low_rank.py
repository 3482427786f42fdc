"""A whole student as a LoRA: the difference to its teacher, layer by layer, cut to the best matrices of a rank.

The best matrix of rank r in the Frobenius norm keeps the r largest singular values (Eckart and Young 1936). Its left
vectors are eigenvectors of `D D^T`, in float64, so the product is exact at full rank however D is conditioned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddx.errors import DdxError, UsageError
from ddx.export.weights import StoredWeights, stored_weights
from ddx.networks.lora import LowRank
from ddx.progress import NullProgress, Progress
from ddx.teachers.base import Teacher
from ddx.teachers.components import component_class
from ddx.teachers.hub import read_json

LARGE = 512  # from this smaller side on, few vectors are iterated for
OVERSAMPLING, ITERATIONS = 16, 4


@dataclass(frozen=True)
class CutDifference:
    """What a file of `rank` holds, and energies (squared Frobenius norms) of the difference to the teacher.

    `total`: of all weights; `kept`: of what the file holds; `outside`: of the weights that no LoRA layer has.
    """

    products: dict[str, LowRank]
    rank: int
    total: float
    kept: float
    outside: float

    @property
    def share(self) -> float:
        """The share of the energy that the file keeps, from 0 to 1."""
        return min(self.kept / self.total, 1.0)


def cut_difference(
    teacher: Teacher, denoiser: Path, rank: int, progress: Progress | None = None, *, device: str | torch.device = "cpu"
) -> CutDifference:
    """Return the difference of the denoiser in a folder to the teacher's, in `rank` where a layer has as much.

    It is computed on `device` and returned on the CPU.

    Its layers are the teacher's `lora_targets`, linear or a convolution of 1x1 or 3x3, and the end of the time
    embedding, whose bias holds what is folded in and is kept whole. UsageError for a denoiser of another shape,
    DdxError for one that equals the teacher's.
    """
    progress = progress or NullProgress()
    network = _empty_network(teacher)
    layers = {name: module for name, module in network.named_modules() if _is_target(name, module, teacher)}
    linear = teacher.time_embedding_linear(network)
    (time_layer,) = (name for name, module in network.named_modules() if module is linear)
    layers.setdefault(time_layer, linear)
    rank = min(rank, max(min(_matrix_shape(module)) for module in layers.values()))
    products: dict[str, LowRank] = {}
    total = kept = outside = 0.0
    with stored_weights(denoiser) as student, stored_weights(teacher.folder / teacher.denoiser_part) as base:
        _check_alike(teacher, student, base)
        progress.start("export", len(student), "weights")
        for name in student:
            difference = student[name].to(device).double() - base[name].to(device).double()
            energy = float(difference.square().sum())
            total += energy
            layer, _, kind = name.rpartition(".")
            if layer in layers and kind == "weight":
                product, part = _best(difference, rank)
                products[layer] = product
                kept += part
            elif layer == time_layer:  # its bias
                kept += energy
            else:
                outside += energy
            progress.advance(1)
        if linear.bias is not None:
            name = f"{time_layer}.bias"
            bias = (student[name].double() - base[name].double()).float()
            if bias.any():
                product = products[time_layer]
                products[time_layer] = LowRank(down=product.down, up=product.up, bias=bias)
        progress.finish()
    if total == 0.0:
        raise DdxError("the student has the weights of its teacher: there is nothing to write", hint="train it first")
    ordered = {name: products[name] for name, _ in network.named_modules() if name in products}
    return CutDifference(products=ordered, rank=rank, total=total, kept=kept, outside=outside)


def _empty_network(teacher: Teacher) -> nn.Module:
    """The denoiser without its weights."""
    part = teacher.denoiser_part
    kind: Any = component_class(teacher.source_info, part, teacher.part_classes[part])
    with torch.device("meta"):
        network: nn.Module = kind.from_config(read_json(teacher.folder / part / "config.json"))
    return network


def _is_target(name: str, module: nn.Module, teacher: Teacher) -> bool:
    if not any(name == target or name.endswith(f".{target}") for target in teacher.lora_targets):
        return False
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.kernel_size in ((1, 1), (3, 3))
    return isinstance(module, nn.Linear)


def _matrix_shape(module: Any) -> tuple[int, int]:
    shape = module.weight.shape
    return shape[0], shape[1:].numel()


def _check_alike(teacher: Teacher, student: StoredWeights, base: StoredWeights) -> None:
    names = {*student, *base}
    other = [n for n in sorted(names) if n not in student or n not in base or student.shape(n) != base.shape(n)]
    if other:
        raise UsageError(
            f"{len(other)} weights of the student are not those of {teacher.name}, such as {other[0]}",
            hint="name the teacher that it was distilled from: --teacher NAME|PATH",
        )


def _best(difference: Tensor, rank: int) -> tuple[LowRank, float]:
    """Return the product nearest to a weight's difference (float64) with its energy, filled up with zeros to `rank`."""
    matrix = difference.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    side = matrix.T if tall else matrix  # [m, n], m <= n
    num = min(rank, len(side))
    vectors = _leading(side, num)  # [m, r]
    rest = vectors.T @ side  # [r, n]
    energies = rest.square().sum(1)
    scale = energies.pow(0.25).clamp_min(torch.finfo(torch.float32).tiny)  # both factors of one size, for 16 bits
    first, second = vectors * scale, rest / scale[:, None]
    down, up = (first.T, second.T) if tall else (second, first)
    down = nn.functional.pad(down, (0, 0, 0, rank - num)).float()
    up = nn.functional.pad(up, (0, rank - num)).float()
    if difference.ndim == 4:
        down, up = down.reshape(rank, *difference.shape[1:]), up[:, :, None, None]
    return LowRank(down=down.cpu().contiguous(), up=up.cpu().contiguous()), float(energies.sum())


def _leading(side: Tensor, num: int) -> Tensor:
    """Return orthonormal vectors `[m, num]`, the largest first, that keep the most of a matrix `[m, n]`.

    Of a large matrix and few vectors by subspace iteration in float32 (Halko et al. 2011, arXiv:0909.4061), which keeps
    as much within rounding where singular values fall; the energies that are reported are those that it keeps.
    """
    if len(side) < LARGE or 4 * num > len(side):
        vectors: Tensor = torch.linalg.eigh(side @ side.T).eigenvectors
        return vectors.flip(1)[:, :num]
    rounded, generator = side.float(), torch.Generator().manual_seed(0)
    found = rounded @ torch.randn(side.shape[1], num + OVERSAMPLING, generator=generator).to(rounded.device)
    for _ in range(ITERATIONS):
        found = rounded @ torch.linalg.qr(rounded.T @ torch.linalg.qr(found)[0])[0]
    basis = torch.linalg.qr(found.double())[0]
    inside = basis.T @ side
    turned: Tensor = basis @ torch.linalg.eigh(inside @ inside.T).eigenvectors
    return turned.flip(1)[:, :num]
