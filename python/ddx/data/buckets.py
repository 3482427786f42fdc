"""Aspect buckets: sizes of about as many pixels as the square; a picture gets the one nearest to its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddx.errors import UsageError

if TYPE_CHECKING:
    from ddx.teachers.base import Teacher

# Finer than an eighth of the square's side there are more sizes than a training fills batches of.
STEPS_A_SIDE = 8


@dataclass(frozen=True)
class Bucket:
    """A size of pictures in pixels, and the shape (C, h, w) of their latents; `name` is None of the only one."""

    width: int
    height: int
    latent_shape: tuple[int, int, int]
    name: str | None = None

    def array(self, kind: str) -> str:
        """Where the store has its latents of a kind, such as "latents_flip"."""
        return kind if self.name is None else f"buckets/{self.name}/{kind}"


def make_buckets(teacher: Teacher, resolution: int, max_aspect: float, step: int | None) -> tuple[Bucket, ...]:
    """The square of `resolution`, and where `max_aspect` is above 1 the sizes around it, by rising aspect ratio.

    None has more pixels than the square, so none takes more memory. Raises UsageError for a step that the teacher
    cannot draw at, or that leaves the square alone.
    """
    shape = teacher.latent_shape(resolution)
    if max_aspect == 1:
        return (Bucket(resolution, resolution, shape),)
    multiple = teacher.resolution_multiple
    step = step or max(multiple, resolution // STEPS_A_SIDE // multiple * multiple)
    if step % multiple:
        raise UsageError(
            f"bucket_step = {step}: {teacher.name} draws at multiples of {multiple} pixels",
            hint=f"--bucket-step {max(1, step // multiple) * multiple}",
        )
    sizes = bucket_sizes(resolution, max_aspect, step)
    if len(sizes) == 1:
        raise UsageError(
            f"max_aspect = {max_aspect} leaves one bucket, the square: sides are multiples of {step} pixels",
            hint="a larger --max-aspect or --resolution"
            + (f", or --bucket-step {multiple}" if step > multiple else ""),
        )
    return tuple(_named(width, height, shape[0], teacher.compression) for width, height in sizes)


def bucket_sizes(resolution: int, max_aspect: float, step: int) -> list[tuple[int, int]]:
    """Widths and heights, multiples of `step` with at most `resolution`² pixels, by rising aspect ratio.

    Of each height below the square's the widest: at 1024 pixels and steps of 64 also 1152x896, 1216x832 and 1344x768.
    """
    sizes = {(resolution, resolution)}
    for height in range((resolution - 1) // step * step, 0, -step):
        width = resolution * resolution // height // step * step
        if width > height * max_aspect:
            break
        sizes |= {(width, height), (height, width)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def described(buckets: tuple[Bucket, ...]) -> dict[str, Any]:
    """What a store's attributes, and the record of a student of it, say of its buckets; nothing of the square alone."""
    if len(buckets) == 1:
        return {}
    return {"buckets": [[bucket.width, bucket.height] for bucket in buckets]}


def read_buckets(attributes: dict[str, Any]) -> tuple[Bucket, ...]:
    """The buckets of a store, from its attributes."""
    (channels, cells, _), side = attributes["latent_shape"], attributes["resolution"]
    if "buckets" not in attributes:
        return (Bucket(side, side, (channels, cells, cells)),)
    return tuple(_named(width, height, channels, side // cells) for width, height in attributes["buckets"])


def _named(width: int, height: int, channels: int, compression: int) -> Bucket:
    return Bucket(width, height, (channels, height // compression, width // compression), f"{width}x{height}")
