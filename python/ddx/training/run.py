"""What is fixed for a whole distillation: its teacher, method, store and folder."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddx.checkpoints.folder import step_of
from ddx.config import to_dict
from ddx.data.captions import Captions
from ddx.data.picture_sizes import PictureSizes
from ddx.data.store import Store
from ddx.errors import UsageError
from ddx.methods.base import Method
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.registry import load_method, trainable_spec
from ddx.networks.quantised import require_4_bits
from ddx.progress import Progress
from ddx.run_record import read_run
from ddx.teachers.base import Teacher
from ddx.teachers.condition import Condition
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.find_store import find_store, require_pairs
from ddx.training.presets import preset_for, preset_names
from ddx.training.run_folder import CHECKPOINTS, RunFolder, cannot_extend, choose_folder
from ddx.training.shard_choice import ShardChoice, choose_sharding
from ddx.training.sharding import Sharding, make_sharding
from ddx.training.streamed import cannot_stream
from ddx.training.trackers.names import require
from ddx.training.tracking import Metrics
from ddx.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is fixed for the whole run."""

    config: DistillConfig
    settings: Mapping[str, Any]  # the trainer's, the method's and the discriminator's in one
    method: Method
    teacher: Teacher
    store: Store
    num_samples: int
    null: Condition
    folder: RunFolder
    sizes: PictureSizes | None  # of the originals, for teachers that are told of them
    captions: Captions | None  # in words, for methods that read them
    history: list[Mapping[str, Any]]  # of settings that were changed on the way
    preset_settings: Mapping[str, Any]  # of the preset as it was when the run began
    metrics: Metrics
    ranks: Ranks
    dtype: torch.dtype
    shard_choice: ShardChoice
    sharding: Sharding | None

    @property
    def rows_per_rank(self) -> int:
        """Rows of each global batch that are this process's."""
        return self.config.batch_size // self.ranks.world

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder.path / CHECKPOINTS


def prepare_run(
    config: DistillConfig,
    method_config: Any,
    discriminator: AddedDiscriminatorConfig | None,
    workspace: Workspace,
    ranks: Ranks,
    progress: Progress,
    said: Collection[str] = (),
) -> Run:
    """Find the teacher, the store and the folder; every mistake of the user comes to light here."""
    require(config.track)
    if config.batch_size % ranks.world:
        raise UsageError(
            f"batch_size = {config.batch_size} does not divide over {ranks.world} processes",
            hint=f"--batch-size {math.ceil(config.batch_size / ranks.world) * ranks.world}",
        )
    if "frozen" in config.offload:
        reason = cannot_stream(config.lora_rank, method_config, ranks.world)
        if reason is not None:
            raise UsageError(
                f"offload = frozen does not go with lora_rank = {config.lora_rank}: {reason}",
                hint="leave --offload frozen or --lora-rank away",
            )
    if config.base_bits == 4:
        require_4_bits()
    dtype = compute_dtype(config.dtype, ranks.device)
    teacher = load_teacher(
        config.teacher, device=ranks.device, dtype=teacher_dtype(config, dtype), resolution=config.resolution
    )
    tells_sizes = _tells_sizes(config, teacher)
    method = load_method(config.method, method_config, teacher, discriminator)
    choice = choose_sharding(config, method, discriminator, teacher, ranks)
    settings = {**to_dict(config), **to_dict(method_config)}
    if trainable_spec(config.method).takes_discriminator:
        settings |= to_dict(discriminator or AddedDiscriminatorConfig())
    folder = ranks.share(
        choose_folder(config.out, workspace, settings, {"teacher": config.teacher, "method": config.method}, said)
    )
    _refuse_stretching(folder, method)
    before = read_run(folder.path) if folder.resumed else None
    store, say = find_store(config, teacher, workspace, before, synthetic=method.reads_pairs)
    if method.reads_pairs:
        warning = require_pairs(store, teacher, method.export_notes().get("guidance_range"))
        if warning is not None and ranks.is_first:
            progress.log(warning)
    if ranks.is_first:
        progress.log(say)
        if folder.resumed and not folder.finished:
            where = folder.checkpoint.name if folder.checkpoint else "its start"
            changes = "".join(f", {name} {now} instead of {then}" for name, (then, now) in folder.changes.items())
            progress.log(f"going on with {folder.path} from {where}{changes}")
    num_samples = store.num_ok
    if num_samples < config.batch_size:
        raise UsageError(
            f"{store.path} holds {num_samples} usable pictures, fewer than batch_size = {config.batch_size}",
            hint=f"--batch-size {max(1, num_samples)}, or precompute more rows",
        )
    return Run(
        config=config,
        settings=settings,
        method=method,
        teacher=teacher,
        store=store,
        num_samples=num_samples,
        null=store.null_condition().to(ranks.device, torch.float32),
        folder=folder,
        sizes=PictureSizes(store) if tells_sizes else None,
        captions=Captions(store) if method.reads_captions else None,
        history=_history(folder, before or {}),
        preset_settings=_preset_settings(config, before or {}),
        metrics=Metrics(folder.path),
        ranks=ranks,
        dtype=dtype,
        shard_choice=choice,
        sharding=make_sharding(choice.kind, ranks),
    )


def _tells_sizes(config: DistillConfig, teacher: Teacher) -> bool:
    """Whether the teacher is to be told of the original pictures; UsageError for one that takes no sizes."""
    if config.picture_sizes == "real" and not teacher.takes_sizes:
        raise UsageError(
            f"picture_sizes = real: {teacher.name} is told no sizes of pictures", hint="leave --picture-sizes away"
        )
    return config.picture_sizes == "real"


def _refuse_stretching(folder: RunFolder, method: Method) -> None:
    """Raise UsageError where the method has stages that more steps would move."""
    before, now = folder.changes.get("train_steps", (0, 0))
    if now > before:
        names = method.stretched(_step(folder) / now)
        if names:
            raise cannot_extend(
                folder.path, f"{', '.join(names)}: shares of {before} steps, which in {now} would be elsewhere"
            )


def _history(folder: RunFolder, before: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    changed = {"step": _step(folder), **{name: list(values) for name, values in folder.changes.items()}}
    return [*before.get("history", ()), *([changed] if folder.changes else ())]


def _preset_settings(config: DistillConfig, before: Mapping[str, Any]) -> Mapping[str, Any]:
    if "preset_settings" in before:
        return dict(before["preset_settings"])
    known = config.preset in preset_names()
    return dict(preset_for(config.teacher, config.method, config.preset).settings) if known else {}


def _step(folder: RunFolder) -> int:
    return 0 if folder.checkpoint is None else step_of(folder.checkpoint)


def teacher_dtype(config: DistillConfig, dtype: torch.dtype) -> torch.dtype:
    """Return what the teacher is loaded in, where the run computes in `dtype`.

    Low-rank matrices compute in the dtype of the backbone that they share with it, which some methods want in float32.
    """
    in_float32 = config.lora_rank > 0 and trainable_spec(config.method).method.full_precision
    return torch.float32 if in_float32 else dtype


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a setting names; auto: bfloat16 on a GPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
