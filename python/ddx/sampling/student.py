"""A student's folder, which opens as a plain diffusers pipeline, and the one call that draws with it.

`call_arguments` is the whole of what a user has to pass, so that the model card's snippet and `ddx sample` are the
same call.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import DdxError, UsageError
from ddx.run_record import read_run
from ddx.teachers.families.table import Family, find_family
from ddx.teachers.pipeline_call import PipelineCall
from ddx.teachers.registry import TEACHERS
from ddx.teachers.safetensors_header import header_of
from ddx.teachers.size import Size, height_and_width

if TYPE_CHECKING:
    import torch

_DTYPE_OF_TAG = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_DTYPE_OF_OPTION = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_FOR_TEACHERS = "`ddx evaluate` scores a teacher, `ddx distill` makes a student of it: --teacher"
_DENOISERS = ("transformer", "unet")


class StudentFolder:
    """What a student's files say, without loading one of them. UsageError for a folder that holds no student."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self.folder / "model_index.json"
        record = read_run(self.folder)
        if self.folder.is_file():
            raise UsageError(
                f"{self.folder} is a file, and a student is the folder that `ddx distill` wrote",
                hint="see `ddx list students`",
            )
        if not self.folder.is_dir():
            if str(folder) in TEACHERS:
                raise UsageError(f"{folder} is a teacher, not a student", hint=f"{_FOR_TEACHERS} {folder}")
            raise UsageError(f"there is no student at {self.folder}", hint="see `ddx list students`")
        if not index.is_file():
            if record is not None and not record.get("finished"):
                raise DdxError(
                    f"the student in {self.folder} is not finished",
                    hint="run the same `ddx distill` command again: it goes on where it stopped",
                )
            raise UsageError(
                f"{self.folder} holds no student: it has no model_index.json",
                hint="give the folder that `ddx distill` wrote, or see `ddx list students`",
            )
        if record is not None and record.get("kind") == "teacher":
            raise UsageError(f"{self.folder} holds a teacher, not a student", hint=f"{_FOR_TEACHERS} {self.folder}")
        self.record: dict[str, Any] = record or {}
        self.index = _read_json(index)
        self.pipeline_class = str(self.index.get("_class_name", ""))
        present = [part for part in _DENOISERS if (self.folder / part).is_dir()]
        if not present:
            raise DdxError(f"{self.folder} has neither a transformer nor a unet", hint="distil the student again")
        self.denoiser_part = present[0]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def family(self) -> Family | None:
        """Its family, None of a pipeline without an adapter."""
        return find_family(self.pipeline_class)

    @property
    def call(self) -> PipelineCall:
        """How its pipeline is called."""
        return self.family.call if self.family else PipelineCall()

    @property
    def remark(self) -> str | None:
        """What to say of a pipeline that does not say that it is a student, None for one that does."""
        if self.record:
            return None
        return f"{self.folder} has no run.json of a student: if it is a teacher, a few steps are not enough for it"

    @property
    def prediction(self) -> str | None:
        """What its denoiser predicts, as its record or else its scheduler says; None where neither does."""
        if self.takes_sigmas:
            return "flow"
        scheduler = self.folder / "scheduler" / "scheduler_config.json"
        named = _read_json(scheduler).get("prediction_type") if scheduler.is_file() else None
        return self.record.get("prediction") or _PREDICTIONS.get(str(named))

    @property
    def takes_sigmas(self) -> bool:
        """Whether the noise levels are passed as `sigmas` (flow matching) and not chosen by the scheduler (VP)."""
        return self.scheduler_class.startswith("FlowMatch")

    @property
    def scheduler_class(self) -> str:
        """The name of the scheduler's class in diffusers."""
        return str((self.index.get("scheduler") or [None, ""])[1])

    def for_steps(self, steps: int) -> Path:
        """Return the folder inside that draws in `steps` steps: its own, or one that was folded for them.

        UsageError for a number of steps that a student with folders of its own for each was not folded for.
        """
        folders = self.record.get("step_folders")
        if not folders:
            return self.folder
        if str(steps) not in folders:
            near = min(folders, key=lambda known: abs(int(known) - steps))
            raise UsageError(
                f"{self.name} draws in {', '.join(folders)} steps, not in {steps}: its weights depend on the number",
                hint=f"--steps {near}",
            )
        return self.folder / str(folders[str(steps)])

    def weights(self, folder: Path | None = None) -> dict[str, torch.Tensor]:
        """Return the state dict of the denoiser in its folder, or in one of those folded for a number of steps."""
        from safetensors.torch import load_file

        state: dict[str, torch.Tensor] = {}
        for file in sorted(((folder or self.folder) / self.denoiser_part).glob("*.safetensors")):
            state |= load_file(file)
        return state

    @property
    def guidance(self) -> float | None:
        """The guidance scale that is folded into the weights, where it is known."""
        value = self.record.get("guidance")
        return None if value is None else float(value)

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures that the student was trained on."""
        if self.record.get("resolution"):
            return int(self.record["resolution"])
        if self.family and self.family.resolution:
            return self.family.resolution
        denoiser = _read_json(self.folder / self.denoiser_part / "config.json")
        vae = _read_json(self.folder / "vae" / "config.json")
        widths = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or [0]
        compression: int = 2 ** (len(widths) - 1)
        return int(denoiser["sample_size"]) * compression

    @property
    def own_times(self) -> tuple[float, ...]:
        """The sigmas (flow) or timesteps (VP) that it was trained to draw at; none for equal steps."""
        return tuple(self.record.get("student_sigmas" if self.takes_sigmas else "student_timesteps", ()))

    @property
    def trained_steps(self) -> int:
        """The most steps that the student was made for; more are possible and seldom better."""
        return int(self.record.get("max_steps", 4))

    @property
    def saved_dtype(self) -> str:
        """The torch dtype of the denoiser's file."""
        for file in sorted((self.folder / self.denoiser_part).glob("*.safetensors")):
            for name, entry in header_of(file).items():
                if name != "__metadata__" and entry.get("dtype") in _DTYPE_OF_TAG:
                    return _DTYPE_OF_TAG[entry["dtype"]]
        return "float32"

    def component_dtypes(self, dtype: str = "auto") -> dict[str, str]:
        """Return the torch dtype by component, "default" first; "auto" is what the denoiser was saved in.

        Some families' autoencoders and text encoders overflow in float16: they run in bfloat16 beside the denoiser.
        """
        chosen = _DTYPE_OF_OPTION.get(dtype) or self.saved_dtype
        if chosen == "float16" and self.call.half_alone:
            return {"default": "bfloat16", self.denoiser_part: chosen}
        return {"default": chosen}

    def call_arguments(
        self, steps: int, *, resolution: Size | None = None, guidance: float | None = None
    ) -> dict[str, Any]:
        """Return the keyword arguments, beside prompt and generator, of the pipeline's call for `steps` steps.

        `guidance` is the student's, if not that of its weights.

        Flow students: a scheduler with shift 1, and explicit sigmas `1, (n-1)/n, …, 1/n`, times the first one where
        that is below 1; its own grids would end at the smallest sigma and waste the last step. VP students: equal steps
        down from the first timestep where that is known, else LCM's grid for that number of steps. A student that was
        trained for times of its own draws at those in as many steps; no scheduler's config holds them.
        """
        height, width = height_and_width(resolution or self.resolution)
        arguments: dict[str, Any] = {"num_inference_steps": steps}
        self._check_steps(steps)
        shares = [(steps - step) / steps for step in range(steps)]
        own, key = self.own_times, "sigmas" if self.takes_sigmas else "timesteps"
        if len(own) == steps:
            arguments[key] = list(own)
        elif self.takes_sigmas:
            first = float(self.record.get("first_sigma", 1.0))
            arguments["sigmas"] = [first * share for share in shares]
        elif "first_timestep" in self.record and self.scheduler_class == "LCMScheduler":
            arguments["timesteps"] = [round((self.record["first_timestep"] + 1) * share - 1) for share in shares]
        arguments |= self.call.guidance(self.guidance if guidance is None else guidance)
        return {**arguments, "height": height, "width": width, **self.call.always}

    def _check_steps(self, steps: int) -> None:
        """Raise UsageError for more steps than the scheduler has noise levels."""
        config = self.folder / "scheduler" / "scheduler_config.json"
        limit = _read_json(config).get("original_inference_steps") if config.is_file() else None
        if limit is not None and steps > int(limit):
            raise UsageError(
                f"steps = {steps} is more than the {limit} noise levels that this student knows", hint="--steps 4"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DdxError(f"cannot read {path}: {error}", hint="distil the student again") from error
    if not isinstance(content, dict):
        raise DdxError(f"{path} holds no JSON object", hint="distil the student again")
    return content
