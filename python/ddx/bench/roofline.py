"""The two ceilings of a device: how fast it copies, and how fast it multiplies matrices. Both are measured, not read.

Random data, since a matrix product of zeros draws less power and runs faster than any real one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddx.bench.timing import Measured, stream_time

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Measured ceilings: bytes read plus bytes written a second of a copy, operations a second of a matrix product."""

    copy_bytes_per_s: float
    product_flops_per_s: float
    product_dtype: str
    copied_bytes: int
    product_size: int

    def seconds(self, *, moved_bytes: float, flops: float) -> float:
        """Return the shortest time in which this much can be moved and computed."""
        return max(moved_bytes / self.copy_bytes_per_s, flops / self.product_flops_per_s)


def measure_roofline(device: torch.device) -> Roofline:
    """Measure `device`: bfloat16 on CUDA, float32 with small buffers and within a second on a CPU.

    Raises RuntimeError when a measurement fails.
    """
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (512, torch.float32)
    copied = _buffer_bytes(device)
    generator = torch.Generator(device=device).manual_seed(0)
    buffers = torch.randn(2, copied // 4, generator=generator, device=device)
    copy = stream_time(lambda: buffers[1].copy_(buffers[0]), device)
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    product = torch.empty(size, size, dtype=dtype, device=device)
    multiply = stream_time(lambda: torch.mm(left, right, out=product), device)
    return Roofline(
        copy_bytes_per_s=2 * copied / _seconds(copy, "a copy"),
        product_flops_per_s=2 * size**3 / _seconds(multiply, "a matrix product"),
        product_dtype=str(dtype).removeprefix("torch."),
        copied_bytes=copied,
        product_size=size,
    )


def _buffer_bytes(device: torch.device) -> int:
    """A size that no cache holds: many times a GPU's L2; 64 MiB on a CPU, whose own is not known."""
    if device.type != "cuda":
        return 64 * 1024**2
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    free, _ = torch.cuda.mem_get_info(device)
    return min(max(2 * GIB, 16 * cache), free // 4) // 1024 * 1024


def _seconds(measured: Measured, what: str) -> float:
    if measured.us is None:
        raise RuntimeError(f"the rate of {what} cannot be measured: {measured.failure}")
    return measured.us * 1e-6
