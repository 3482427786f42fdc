"""A student or a teacher that draws: its folder opened as a diffusers pipeline.

Pictures are drawn one by one unless asked otherwise: batched arithmetic rounds differently.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import DdxError, UsageError
from ddx.sampling.student import StudentFolder
from ddx.sampling.teacher_folder import TeacherFolder
from ddx.teachers.samplers.sampler import OWN_SAMPLER, TeacherSampler

log = logging.getLogger("ddx.sampling")

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from ddx.offload.keeping import Keeping
    from ddx.sampling.prompt_cache import PromptCache
    from ddx.teachers.base import Teacher
    from ddx.teachers.condition import Condition
    from ddx.teachers.size import Size
    from ddx.teachers.truncation import Cut


class OutOfMemory(DdxError):
    """The device has no memory left."""


class StudentPipeline:
    """A student, or a teacher in its place, loaded: safetensors only, no code from the folder."""

    def __init__(
        self,
        folder: str | Path | TeacherFolder,
        *,
        device: str = "auto",
        dtype: str = "auto",
        keeping: Keeping | None = None,
        prompts: Path | None = None,
        sampler: TeacherSampler = OWN_SAMPLER,
    ) -> None:
        """keeping: where its parts are while it draws (None: on the device). prompts: a folder for encoded prompts.
        sampler: of a teacher.

        A student in parts is computed by diffusers' own code, without the kernels of its family.
        """
        import torch
        from diffusers import DiffusionPipeline

        from ddx.device import find_device
        from ddx.sampling.prompt_cache import PromptCache
        from ddx.teachers.components import no_progress_bars

        self.files = folder if isinstance(folder, TeacherFolder) else StudentFolder(folder)
        self.device = find_device(device)
        dtypes = {part: getattr(torch, name) for part, name in self.files.component_dtypes(dtype).items()}
        try:
            with no_progress_bars():
                self.pipeline: Any = DiffusionPipeline.from_pretrained(
                    self.files.folder,
                    use_safetensors=True,
                    local_files_only=True,
                    **(self.files.components() if isinstance(self.files, TeacherFolder) else {}),
                    **{dtype_keyword(): dtypes if len(dtypes) > 1 else dtypes["default"]},
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise DdxError(
                f"the pipeline in {self.files.folder} does not open: {error}",
                hint="distil it again, or check its files",
            ) from error
        self.pipeline.set_progress_bar_config(disable=True)
        self.adapter = self._open_adapter()
        self.cache: PromptCache | None = None  # of encoded prompts, where the encoders are not on the device
        self._keeping, self.sampler = keeping, sampler
        self._cap: int | None = None  # bytes that the allocator may take
        if keeping is None:
            self.pipeline.to(self.device)
        if self.adapter is not None and (keeping is None or keeping.all_on_device):
            self.adapter.fast(self.denoiser)
        if keeping is not None and not keeping.all_on_device:
            self.cache = PromptCache(self.pipeline, self.device, fingerprint=self._text_fingerprint(), folder=prompts)
        self._refuse_what_is_not_finite()
        self.guidance = self.files.guidance
        self._weights_of = self.files.folder.resolve()

    def _text_fingerprint(self) -> str:
        """Return what tells the text encoders from others: a teacher's commit where it is known, else their hash."""
        weights = self.files.record.get("teacher_fingerprint", {}).get("weights")
        if weights is None and self.adapter is not None:
            weights = self.adapter.fingerprint()["weights"]
        return str(weights)

    def _settle(self) -> None:
        """Put the parts where they are kept, before the first picture: weights that change must change before."""
        if self._keeping is None:
            return
        import torch

        from ddx.offload.keeping import keep, run_on

        networks = {part: value for part, value in self.pipeline.components.items() if hasattr(value, "parameters")}
        keep(networks, self._keeping, self.device)
        run_on(self.pipeline, self.device)
        self._cap, self._keeping = self._keeping.limit, None
        if self._cap is not None and self.device.type == "cuda":  # libraries then choose what takes less
            share = self._cap / torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(share, 1.0), self.device)

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

        if isinstance(self.files, TeacherFolder):
            self.guidance = guidance
            return
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

    def read(self, prompts: Sequence[str], steps: int) -> None:
        """Encode prompts before the pictures are drawn, where encoders would come in for each of them otherwise."""
        if self.cache is not None:
            arguments = self._arguments(steps, None)
            for prompt in dict.fromkeys(prompts):
                self.cache.read(lambda: self._call(prompt=prompt, generator=_generator(0), **arguments))  # noqa: B023

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
        requests = list(zip(prompts, seeds, strict=True))
        pictures: list[Image] = []
        for batch in [requests] if together else [[request] for request in requests]:
            try:
                pictures += self._draw(batch, together, arguments)
            except OutOfMemory:
                if self._cap is None:
                    raise
                self._lift_cap()
                pictures += self._draw(batch, together, arguments)
        return pictures

    def _draw(self, batch: Sequence[tuple[str, int]], together: bool, arguments: Mapping[str, Any]) -> list[Image]:
        prompts, generators = [prompt for prompt, _ in batch], [_generator(seed) for _, seed in batch]
        if together:
            return self._call(prompt=prompts, generator=generators, **arguments)
        return self._call(prompt=prompts[0], generator=generators[0], **arguments)

    def _lift_cap(self) -> None:
        """Draw with more memory than was asked for: its libraries take what no count on tensors sees."""
        import torch

        log.warning(
            "more than %s is needed: drawn with what there is, and measured", f"{(self._cap or 0) / 1e6:.0f} MB"
        )
        self._cap = None
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

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
        scheduler = self.pipeline.scheduler
        own = scheduler.step
        if self.files.call.seeds_steps or "generator" not in inspect.signature(own).parameters:
            yield
            return
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
        if not self.sampler.is_own:
            assert isinstance(self.files, TeacherFolder)
            teacher = self.files.teacher
            self.pipeline.scheduler = self.sampler.scheduler(teacher, teacher.latent_shape(resolution))
        return self.files.call_arguments(steps, resolution=resolution, guidance=self.guidance)

    def _call(self, **arguments: Any) -> list[Image]:
        import torch

        self._settle()
        try:
            with self._seeded_steps(arguments["generator"]):
                pictures: list[Image] = self.pipeline(**arguments).images
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(
                "the device ran out of memory", hint="give --memory SIZE, a smaller --batch-size or a --resolution"
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
