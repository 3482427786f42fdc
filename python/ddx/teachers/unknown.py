"""What to say of a teacher that is none: other names for ours, families without an adapter, single-file checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddx.errors import DdxError, UsageError, nearest
from ddx.teachers.published_students import published_name
from ddx.teachers.safetensors_header import header_of

SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")
# What people call the teachers that ddx knows, hub ids that have been withdrawn included.
ALIASES = {
    "sana-600m": "sana sana-0.6b sana-600m-512px sana-600m-512 efficient-large-model/sana-600m-512px",
    "sana-600m-1024": "sana-600m-1024px efficient-large-model/sana-600m-1024px",
    "sana-1600m": "sana-1.6b sana-1600m-1024px sana-1600m-1024 efficient-large-model/sana-1600m-1024px",
    "sana15-1600m": "sana-1.5 sana1.5 sana15 sana-15 sana1.5-1.6b sana-1.5-1.6b sana1.5-1600m sana-1.5-1600m "
    "sana1.5-1.6b-1024px efficient-large-model/sana1.5-1.6b-1024px",
    "sana15-4800m": "sana-4.8b sana-4800m sana1.5-4.8b sana-1.5-4.8b sana1.5-4800m sana-1.5-4800m "
    "sana1.5-4.8b-1024px efficient-large-model/sana1.5-4.8b-1024px",
    "sana-tiny": "tiny toy",
    "sd15": "sd sd1 sd-1 sd1.5 sd-1.5 sd-1-5 sd-15 stable-diffusion stable-diffusion-1.5 stable-diffusion-v1-5 "
    "runwayml/stable-diffusion-v1-5",
    "sd21": "sd2 sd-2 sd2.1 sd-2.1 sd-2-1 stable-diffusion-2 stable-diffusion-2.1 stable-diffusion-2-1 "
    "stabilityai/stable-diffusion-2-1",
    "auraflow": "aura aura-flow auraflow-v0.3 fal/auraflow",
    "z-image": "zimage z-image-base z-image-6b",
    "lumina2": "lumina lumina-2 lumina-image lumina-image-2 lumina-image-2.0",
    "sdxl": "sd-xl xl sdxl-base sdxl-1.0 stable-diffusion-xl stable-diffusion-xl-base-1.0",
    "sd35-medium": "sd3 sd-3 sd3.5 sd-3.5 sd35 sd3.5-medium stable-diffusion-3 stable-diffusion-3.5 "
    "stable-diffusion-3.5-medium",
    "sd35-large": "sd3.5-large stable-diffusion-3.5-large",
    "flux1-dev": "flux flux1 flux.1 flux-1 flux-dev flux.1-dev flux-1-dev",
    "pixart-sigma": "pixart pixart-sigma-1024 pixart-sigma-xl-2-1024-ms",
    "pixart-sigma-512": "pixart-sigma-xl-2-512-ms",
    "pixart-alpha": "pixart-xl pixart-xl-2-1024-ms",
    "qwen-image": "qwen qwenimage qwen-image-20b",
    "flux2-klein-base-4b": "flux2 flux.2 flux-2 flux2-klein flux.2-klein flux.2-klein-4b flux.2-klein-base-4b",
}
FAMILIES = {
    "another FLUX": r"flux",
    "a Turbo, which is a student already": r"turbo",
    "Kandinsky": r"kandinsky",
    "HunyuanDiT": r"hunyuan",
    "an older Lumina": r"lumina-?(next|t2)",
    "Qwen-Image-Edit, which edits pictures": r"qwen.*edit",
    "CogView": r"cogview",
    "DiT": r"^dit",
    "EDM": r"^edm",
    "Wan": r"^wan",
}
_SUPPORTED = "`ddx list teachers` names those that have one; your own fine-tunes of them work too"


def unknown_teacher(text: str, names: Sequence[str]) -> UsageError:
    """Return the error for a teacher that is neither one of `names` nor a folder nor a hub id that may exist."""
    if is_single_file(text):
        return _single_file(Path(text).expanduser())
    if alias := alias_of(text):
        return UsageError(f"unknown teacher {text!r}; did you mean {alias}?", hint=f"--teacher {alias}")
    if "/" in text or text.startswith((".", "~")):
        return UsageError(f"no teacher at {text}: there is no such folder", hint="see `ddx list teachers`")
    if student := published_name(text):
        return student
    key = text.lower().replace("_", "-")
    if family := next((family for family, pattern in FAMILIES.items() if re.search(pattern, key)), None):
        return UsageError(f"{text}: ddx has no adapter for {family}", hint=_SUPPORTED)
    near = nearest(text, tuple(names))
    meant = f"; did you mean {near}?" if near else ""
    return UsageError(
        f"unknown teacher {text!r}{meant}",
        hint="see `ddx list teachers`; a folder with a diffusers pipeline and a hub id work as well",
    )


def is_single_file(text: str) -> bool:
    """Whether the text names a file and not a folder."""
    return text.lower().endswith(SINGLE_FILES) or Path(text).expanduser().is_file()


def alias_of(text: str) -> str | None:
    """Return the name of the teacher that is also called so."""
    key = text.lower().replace("_", "-").removesuffix("-diffusers")
    return next((name for name, others in ALIASES.items() if key in others.split()), None)


def _single_file(path: Path) -> UsageError:
    if not path.is_file():
        return UsageError(f"no teacher at {path}: there is no such file", hint="see `ddx list teachers`")
    what = f"{path} is a single file, and a teacher is here a folder with a diffusers pipeline"
    kind = _contents(path)
    if kind == "lora":
        return UsageError(
            f"{path} holds a LoRA and no whole teacher",
            hint="in diffusers: pipe.load_lora_weights(…), pipe.fuse_lora(), pipe.save_pretrained(FOLDER), then "
            "--teacher FOLDER",
        )
    if kind == "part":
        return UsageError(
            what, hint=f"give the pipeline's folder, with its model_index.json: --teacher {path.parent.parent}"
        )
    if path.suffix.lower() == ".safetensors":
        return UsageError(
            what,
            hint=f"--teacher {path} of `ddx precompute` and `ddx distill` converts a checkpoint; "
            "save it with diffusers as a folder for other commands",
        )
    folder = path.stem if path.stem else "teacher"
    return UsageError(
        what,
        hint='convert it: python -c "from diffusers import StableDiffusionPipeline as P; '
        f"P.from_single_file('{path}').save_pretrained('{folder}')\", then --teacher ./{folder}",
    )


def holds_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are low-rank matrices, of any program."""
    marks = (".lora_", "_lora.down", "lora_A", ".lokr_", ".hada_")
    return any(name.startswith("lora_") or any(mark in name for mark in marks) for name in names)


def _contents(path: Path) -> str:
    """Return what a safetensors file holds: lora, part (of a diffusers pipeline) or checkpoint; so do other files."""
    try:
        names = list(header_of(path))
    except DdxError:
        return "checkpoint"
    if holds_lora(names):
        return "lora"
    return "part" if (path.parent / "config.json").is_file() else "checkpoint"
