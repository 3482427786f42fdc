"""A student that draws: its folder opened as a diffusers pipeline.

Pictures are drawn one by one unless asked otherwise: batched arithmetic rounds differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import DdxError, UsageError
from ddx.sampling.student import StudentFolder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ddx.teachers.base import Teacher
    from ddx.teachers.condition import Condition
    from ddx.teachers.size import Size
    from ddx.teachers.truncation import Cut


class StudentPipeline:
    """A student, loaded: safetensors only, no code from the folder."""

    def __init__(self, folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> None:
        import torch
        from diffusers import DiffusionPipeline

        from ddx.device import find_device
        from ddx.teachers.components import no_progress_bars

        self.files = StudentFolder(folder)
        self.device = find_device(device)
        dtypes = {part: getattr(torch, name) for part, name in self.files.component_dtypes(dtype).items()}
        try:
            with no_progress_bars():
                self.pipeline: Any = DiffusionPipeline.from_pretrained(
                    self.files.folder,
                    use_safetensors=True,
                    local_files_only=True,
                    **{dtype_keyword(): dtypes if len(dtypes) > 1 else dtypes["default"]},
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise DdxError(
                f"the student in {folder} does not open: {error}", hint="distil it again, or check its files"
            ) from error
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(self.device)
        self.adapter = self._open_adapter()
        if self.adapter is not None:
            self.adapter.fast(self.denoiser)
        self._refuse_what_is_not_finite()
        self.guidance = self.files.guidance
        self._weights_of = self.files.folder.resolve()

    @property
    def denoiser(self) -> Any:
        """The student's network."""
        return getattr(self.pipeline, self.files.denoiser_part)

    def _open_adapter(self) -> Teacher | None:
        """What ddx knows of the family, None of one without an adapter. The tokenizers are not read again."""
        from ddx.teachers.families.table import find_family, open_teacher
        from ddx.teachers.hub import local_source

        if find_family(self.files.pipeline_class) is None:
            return None
        adapter = open_teacher(local_source(self.files.folder), device=self.device, dtype=self.pipeline.dtype)
        for part, component in self.pipeline.components.items():
            if part.startswith("tokenizer") and component is not None:
                adapter.use_part(part, component)
        return adapter

    def _refuse_what_is_not_finite(self) -> None:
        """Look at decoded pictures before the pipeline rounds them: in 8 bits NaN is black."""
        import torch

        processor = self.pipeline.image_processor
        finish = processor.postprocess

        def checked(pixels: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            if not bool(torch.isfinite(pixels).all()):
                raise not_finite(self.files.name)
            return finish(pixels, *arguments, **named)

        processor.postprocess = checked

    def set_guidance(self, guidance: float) -> None:
        """Fold another guidance scale in, or feed it to a network that takes it.

        UsageError for one that was not trained, DdxError where nothing was kept to fold.
        """
        from ddx.sampling.student_guidance import check_guidance, refold_guidance

        if self.guidance is None:
            raise UsageError(
                f"{self.files.name} does not say which guidance its weights hold", hint="leave --guidance away"
            )
        if abs(guidance - self.guidance) < 1e-9:
            return
        check_guidance(self.files, guidance, self.guidance)
        if not self.files.call.embedded_guidance:
            linear = None if self.adapter is None else self.adapter.time_embedding_linear(self.denoiser)
            refold_guidance(self.files, linear, guidance, folded=self.guidance)
        self.guidance = guidance

    def cut(self, prompt: str) -> Cut | None:
        """Return what the pipeline leaves out of a prompt that is too long for it."""
        return None if self.adapter is None else self.adapter.cut(prompt)

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        *,
        resolution: Size | None = None,
        together: bool = False,
    ) -> list[Image]:
        """Return one picture for each prompt and seed: one by one, or in one batch with a generator a picture."""
        arguments = self._arguments(steps, resolution)
        if together:
            return self._call(prompt=list(prompts), generator=[_generator(seed) for seed in seeds], **arguments)
        pictures: list[Image] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            pictures += self._call(prompt=prompt, generator=_generator(seed), **arguments)
        return pictures

    def draw_conditions(
        self, condition: Condition, seeds: Sequence[int], steps: int, *, resolution: Size | None = None
    ) -> NDArray[np.uint8]:
        """Return pictures uint8 `[B, H, W, 3]` of encoded prompts: the same call in one batch, its text read before."""
        import numpy as np

        arguments = self._arguments(steps, resolution)
        arguments |= self.files.call.text(condition, self.device, self.pipeline.text_encoder.dtype)
        pictures = self._call(prompt=None, generator=[_generator(seed) for seed in seeds], **arguments)
        return np.stack([np.asarray(picture) for picture in pictures])

    @contextmanager
    def _seeded_steps(self, generator: Any) -> Iterator[None]:
        """Hand the generator to the scheduler, for pipelines that do not: its fresh noise would be unseeded."""
        if self.files.call.seeds_steps:
            yield
            return
        scheduler = self.pipeline.scheduler
        own = scheduler.step
        scheduler.step = partial(own, generator=generator)
        try:
            yield
        finally:
            del scheduler.step

    def _load_for(self, steps: int) -> None:
        """Take the weights that were folded for this number of steps, where they depend on it."""
        folder = self.files.for_steps(steps)
        if folder.resolve() == self._weights_of:
            return
        self.denoiser.load_state_dict(self.files.weights(folder))
        self._weights_of = folder.resolve()
        asked, self.guidance = self.guidance, self.files.guidance
        if asked is not None:  # these weights hold the one that was exported
            self.set_guidance(asked)

    def _arguments(self, steps: int, resolution: Size | None) -> dict[str, Any]:
        if self.adapter is not None and resolution is not None:
            self.adapter.latent_shape(resolution)  # some pipelines draw another size than the one asked for
        self._load_for(steps)
        return self.files.call_arguments(steps, resolution=resolution, guidance=self.guidance)

    def _call(self, **arguments: Any) -> list[Image]:
        import torch

        try:
            with self._seeded_steps(arguments["generator"]):
                pictures: list[Image] = self.pipeline(**arguments).images
        except torch.OutOfMemoryError as error:
            raise DdxError(
                "the device ran out of memory", hint="give a smaller --batch-size or --resolution"
            ) from error
        except ValueError as error:
            raise UsageError(f"the student's pipeline refuses the call: {error}", hint="check --resolution") from error
        return pictures


def not_finite(name: str) -> DdxError:
    """Return the error for a picture of `name` that holds no numbers."""
    return DdxError(
        f"{name} draws a picture that is not finite",
        hint="try --dtype float32; if that does not help its weights are broken: train at a lower learning rate",
    )


def dtype_keyword() -> str:
    """Return what the installed diffusers calls the dtype of `from_pretrained`: older ones know `torch_dtype` only."""
    from importlib.metadata import version

    old = tuple(int(part) for part in version("diffusers").split(".")[:2]) < (0, 42)
    return "torch_dtype" if old else "dtype"


def _generator(seed: int) -> torch.Generator:
    """A generator on the CPU whatever the device, so that a seed means the same noise everywhere."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)
