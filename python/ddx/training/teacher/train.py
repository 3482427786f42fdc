"""`train_teacher`: from nothing to a SanaPipeline folder, resumable at any step by the same call."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ddx.config import to_dict
from ddx.device import find_device
from ddx.errors import UsageError
from ddx.progress import NullProgress, Progress
from ddx.run_record import read_run, versions, write_run
from ddx.scenes.captions import SceneSpec, sample_scenes
from ddx.scenes.render import render
from ddx.teachers.families.sana_fused import fuse_if_faster
from ddx.training.distributed import Ranks
from ddx.training.sole_writer import sole_writer
from ddx.training.teacher.autoencoder import encode_pictures, new_autoencoder
from ddx.training.teacher.caption_questions import scene_labels
from ddx.training.teacher.config import TeacherConfig
from ddx.training.teacher.export import export_pipeline
from ddx.training.teacher.flow import new_transformer
from ddx.training.teacher.stage import run_stage
from ddx.training.teacher.stages import HeldOutScore, autoencoder_stage, decoder_stage, flow_stage, text_stage
from ddx.training.teacher.text import encode_all, new_text_encoder, new_tokenizer, tokenise

SCENES_PER_DRAW = 1000
FINAL_SCORES = ((20, 1.0), (20, 2.0), (20, 3.0), (4, 2.0), (2, 2.0), (1, 2.0))
"""(steps, guidance) of the scores in run.json."""

# What may differ between a run and its continuation: it changes no weight.
RESUMABLE_CHANGES = frozenset(("out", "device", "threads", "log_every", "checkpoint_every", *(
    f"evaluate_{name}" for name in ("every", "captions", "steps", "guidance")
)))  # fmt: skip


def train_teacher(config: TeacherConfig, out: Path, *, resume: bool = True, progress: Progress | None = None) -> Path:
    """Train autoencoder, text encoder, flow and decoder, and write a complete SanaPipeline to `out`; return `out`.

    Checkpoints and metrics lie in `out`/training. The same call goes on where a stopped one ended, and exactly.
    Raises UsageError when `out` holds a run with other settings, or a finished one and `resume` is false, and DdxError
    when another process writes to it.
    """
    progress = progress or NullProgress()
    with sole_writer(out, Ranks()):
        return _train(config, out, resume, progress)


def _train(config: TeacherConfig, out: Path, resume: bool, progress: Progress) -> Path:
    work = out / "training"
    record = {"kind": "teacher", "config": to_dict(config), "versions": versions()}
    _check_record(out, config, resume)
    write_run(out, record, finished=False)
    if config.threads:
        torch.set_num_threads(config.threads)

    specs = sample_scenes(config.num_scenes, config.seed, "train")
    captions = [spec.caption for spec in specs]
    device = find_device(config.device)
    pictures = _pictures(specs, config.seed, work / "pictures.safetensors", progress).to(device)
    torch.manual_seed(config.seed)
    autoencoder = new_autoencoder(config).to(device)
    tokenizer = _tokenizer(captions, config.vocab_size, work / "tokenizer")
    text_encoder = new_text_encoder(len(tokenizer), config.text_width, config.text_layers).to(device)
    transformer = new_transformer(config).to(device)
    fuse_if_faster(transformer)

    seconds = {"autoencoder": run_stage(
        autoencoder_stage(config, autoencoder, pictures), work / "autoencoder", progress
    )}  # fmt: skip
    latents = encode_pictures(autoencoder.eval(), pictures)
    scale = float(latents.square().mean().rsqrt())
    tokenised = tokenise(tokenizer, captions).to(device)
    reading = text_stage(config, text_encoder, tokenised, scene_labels(specs).to(device))
    seconds["text"] = run_stage(reading, work / "text", progress)
    text_encoder.eval().requires_grad_(False)
    held_out = HeldOutScore(
        config, autoencoder, scale, lambda texts: encode_all(text_encoder, tokenise(tokenizer, texts).to(device))
    )
    flow = flow_stage(config, transformer, latents * scale, *encode_all(text_encoder, tokenised), held_out)
    seconds["flow"] = run_stage(flow, work / "flow", progress)
    decoder = decoder_stage(config, autoencoder.train(), pictures, latents)
    seconds["decoder"] = run_stage(decoder, work / "decoder", progress)

    autoencoder.eval()
    transformer.eval()
    export_pipeline(
        out,
        transformer=transformer,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        autoencoder=autoencoder,
        scale=scale,
    )
    scores = [
        {"steps": steps, "guidance": guidance, **held_out(transformer, steps=steps, guidance=guidance)}
        for steps, guidance in FINAL_SCORES
    ]
    images = config.flow_steps * config.flow_batch_size
    write_run(out, {**record, "images_seen": images, "seconds": seconds, "scores": scores}, finished=True)
    return out


def _check_record(out: Path, config: TeacherConfig, resume: bool) -> None:
    record = read_run(out)
    if record is None:
        return
    if not resume:
        raise UsageError(f"{out} already holds a run", hint="choose another --out, or delete that folder")
    before, now = record.get("config", {}), to_dict(config)
    changed = sorted(key for key in now if key not in RESUMABLE_CHANGES and before.get(key) != now[key])
    if changed:
        key = changed[0]
        raise UsageError(
            f"{out} was trained with {key}={before.get(key)}, not {now[key]}",
            hint="give the same settings to resume it, or another --out",
        )


def _tokenizer(captions: list[str], vocab_size: int, cache: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained once: among equally frequent pairs, which are merged first is left to chance."""
    if not cache.is_dir():
        temporary = cache.with_name(f".{cache.name}")
        new_tokenizer(captions, vocab_size).save_pretrained(temporary)
        temporary.rename(cache)
    return PreTrainedTokenizerFast.from_pretrained(cache)


def _pictures(specs: list[SceneSpec], seed: int, cache: Path, progress: Progress) -> Tensor:
    """Return the training pictures, uint8 [N, 64, 64, 3], drawn once and then read back."""
    if cache.is_file():
        stored: Tensor = load_file(cache)["pictures"]
        return stored
    progress.start("drawing scenes", len(specs), "pictures")
    chunks = []
    for first in range(0, len(specs), SCENES_PER_DRAW):
        chunks.append(torch.from_numpy(render(specs[first : first + SCENES_PER_DRAW], seed + first)))
        progress.advance(len(chunks[-1]))
    progress.finish()
    pictures = torch.cat(chunks)
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}")
    save_file({"pictures": pictures}, temporary)
    temporary.replace(cache)
    return pictures
