"""From trained parts to a complete SanaPipeline folder that opens offline."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import Gemma2Model, PreTrainedTokenizerFast

from ddx.teachers.components import no_progress_bars
from ddx.training.teacher.flow import FLOW_SHIFT

PARTS = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")


def export_pipeline(
    out: Path,
    *,
    transformer: SanaTransformer2DModel,
    text_encoder: Gemma2Model,
    tokenizer: PreTrainedTokenizerFast,
    autoencoder: AutoencoderDC,
    scale: float,
) -> Path:
    """Write a SanaPipeline to `out`, replacing an older one there; return `out`.

    Weights are stored in float16 and open as float32. `scale` becomes the autoencoder's `scaling_factor`.
    """
    autoencoder.register_to_config(scaling_factor=scale)
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoder,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=FLOW_SHIFT),
    )
    staging = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    with no_progress_bars():
        pipeline.save_pretrained(staging, safe_serialization=True)
    for path in staging.rglob("*.safetensors"):
        _store_half(path)
    for path in staging.rglob("config.json"):
        _forget_local_paths(path)
    _name_old_tokenizer_class(staging)
    out.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        target = out / name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(staging / name, target)
    shutil.rmtree(staging)
    return out


def _store_half(path: Path) -> None:
    tensors = {name: value.to(torch.float16) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone


def _name_old_tokenizer_class(folder: Path) -> None:
    """transformers 5 calls the class TokenizersBackend; the older name opens with 4 and 5."""
    name = "PreTrainedTokenizerFast"
    for path, key, value in (
        (folder / "model_index.json", "tokenizer", ["transformers", name]),
        (folder / "tokenizer" / "tokenizer_config.json", "tokenizer_class", name),
    ):
        content = json.loads(path.read_text(encoding="utf-8")) | {key: value}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _forget_local_paths(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
