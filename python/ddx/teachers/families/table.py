"""The families that have an adapter, listed without torch; a family's file is imported when a teacher is opened.

A new family is one file beside this one, and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ddx.errors import UsageError
from ddx.teachers.pipeline_call import PipelineCall

if TYPE_CHECKING:
    import torch

    from ddx.teachers.base import Teacher
    from ddx.teachers.hub import Source
    from ddx.teachers.parts.original_names import OriginalNames


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's pipelines in diffusers, its adapter (`<file>.<class>` beside this module), and how it is called."""

    name: str
    title: str
    pipelines: tuple[str, ...]
    adapter: str
    text_tokens: int  # the tokens of the longest text that its pipeline reads, as the denoiser sees it
    instruction_tokens: int = 0  # before them, where only the text encoder sees them; about one in four letters
    student_pipelines: tuple[str, ...] = ()  # of published students, which a student may start from
    resolution: int | None = None  # pixels a side, for denoisers whose config does not say it
    call: PipelineCall = field(default_factory=PipelineCall)
    has_kernels: bool = False  # whether ddx computes it with kernels of its own on a GPU
    lora_programs: str = "ComfyUI and A1111"  # the programs that read its students' ComfyUI file
    loads_lora: bool = True  # whether its pipeline in diffusers has a loader of LoRA files
    original_text: Mapping[str, str] = field(default_factory=dict)
    """Where its text encoders are in the original checkpoints, one file for all parts in the layout of latent
    diffusion: a prefix by part. Empty for a family that has none."""
    original_names: str = ""
    """The names of its denoiser's weights in the authors' checkpoints, `<file>.<constant>` beside this module. Empty
    for a family that has `original_text`, or whose checkpoints ddx does not read."""

    @property
    def adapter_class(self) -> type[Teacher]:
        """Its adapter; imports torch."""
        module, _, name = self.adapter.partition(".")
        adapter: type[Teacher] = getattr(importlib.import_module(f"ddx.teachers.families.{module}"), name)
        return adapter

    @property
    def original(self) -> OriginalNames | None:
        """What `original_names` names, None for a family without it; needs no torch."""
        if not self.original_names:
            return None
        module, _, name = self.original_names.partition(".")
        names: OriginalNames = getattr(importlib.import_module(f"ddx.teachers.families.{module}"), name)
        return names


_PIXART_CALL = PipelineCall(
    always={"use_resolution_binning": False, "clean_caption": False}, mask="prompt_attention_mask"
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="sana",
        title="SANA and SANA-1.5",
        pipelines=("SanaPipeline",),
        adapter="sana.SanaTeacher",
        original_names="sana_names.ORIGINAL",
        text_tokens=300,
        instruction_tokens=264,
        student_pipelines=("SanaSprintPipeline",),
        call=PipelineCall(always={"use_resolution_binning": False}, mask="prompt_attention_mask", half_alone=True),
        has_kernels=True,
        lora_programs="ComfyUI's SANA nodes",
    ),
    Family(
        name="stable-diffusion",
        title="Stable Diffusion 1 and 2",
        pipelines=("StableDiffusionPipeline",),
        adapter="stable_diffusion.StableDiffusionTeacher",
        text_tokens=77,
        original_text={"text_encoder": "cond_stage_model."},
    ),
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        pipelines=("StableDiffusionXLPipeline",),
        adapter="sdxl.SDXLTeacher",
        text_tokens=77,
        original_text={"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."},
        call=PipelineCall(pooled="pooled_prompt_embeds"),
    ),
    Family(
        name="stable-diffusion-3",
        title="Stable Diffusion 3 and 3.5",
        pipelines=("StableDiffusion3Pipeline",),
        adapter="stable_diffusion_3.StableDiffusion3Teacher",
        original_names="stable_diffusion_3_names.ORIGINAL",
        text_tokens=333,
        call=PipelineCall(pooled="pooled_prompt_embeds", seeds_steps=False),
        lora_programs="ComfyUI",
    ),
    Family(
        name="flux1",
        title="FLUX.1",
        pipelines=("FluxPipeline",),
        adapter="flux1.Flux1Teacher",
        original_names="flux1_names.ORIGINAL",
        text_tokens=512,
        resolution=1024,
        call=PipelineCall(
            guidance_off={"guidance_scale": 3.5},
            embedded_guidance=True,
            pooled="pooled_prompt_embeds",
            seeds_steps=False,
        ),
        lora_programs="ComfyUI",
    ),
    Family(
        name="pixart-alpha",
        title="PixArt-α",
        pipelines=("PixArtAlphaPipeline",),
        adapter="pixart.PixArtAlphaTeacher",
        text_tokens=120,
        call=_PIXART_CALL,
        lora_programs="ComfyUI",
        loads_lora=False,
    ),
    Family(
        name="pixart-sigma",
        title="PixArt-Σ",
        pipelines=("PixArtSigmaPipeline",),
        adapter="pixart.PixArtSigmaTeacher",
        text_tokens=300,
        call=_PIXART_CALL,
        lora_programs="ComfyUI",
        loads_lora=False,
    ),
    Family(
        name="auraflow",
        title="AuraFlow",
        pipelines=("AuraFlowPipeline",),
        adapter="auraflow.AuraFlowTeacher",
        original_names="auraflow_names.ORIGINAL",
        text_tokens=256,
        call=PipelineCall(mask="prompt_attention_mask", seeds_steps=False),
        lora_programs="ComfyUI",
    ),
    Family(
        name="z-image",
        title="Z-Image",
        pipelines=("ZImagePipeline",),
        adapter="z_image.ZImageTeacher",
        original_names="next_dit_names.Z_IMAGE",
        text_tokens=512,
        resolution=1024,
        call=PipelineCall(guidance_off={"guidance_scale": 0.0}, token_lists=True, seeds_steps=False),
        lora_programs="ComfyUI",
    ),
    Family(
        name="lumina2",
        title="Lumina-Image 2.0",
        pipelines=("Lumina2Pipeline",),
        adapter="lumina2.Lumina2Teacher",
        original_names="next_dit_names.LUMINA2",
        text_tokens=256,
        call=PipelineCall(mask="prompt_attention_mask", seeds_steps=False),
        lora_programs="ComfyUI",
    ),
    Family(
        name="qwen-image",
        title="Qwen-Image",
        pipelines=("QwenImagePipeline",),
        adapter="qwen_image.QwenImageTeacher",
        original_names="qwen_image_names.ORIGINAL",
        text_tokens=512,
        resolution=1024,
        call=PipelineCall(
            guidance_off={"true_cfg_scale": 1.0}, null_prompt=" ", mask="prompt_embeds_mask", seeds_steps=False
        ),
        lora_programs="ComfyUI",
    ),
    Family(
        name="flux2-klein",
        title="FLUX.2 klein",
        pipelines=("Flux2KleinPipeline",),
        adapter="flux2_klein.Flux2KleinTeacher",
        original_names="flux2_names.ORIGINAL",
        text_tokens=512,
        resolution=1024,
        call=PipelineCall(seeds_steps=False),
        lora_programs="ComfyUI",
    ),
)

PIPELINES: dict[str, Family] = {pipeline: family for family in FAMILIES for pipeline in family.pipelines}
STUDENT_PIPELINES: dict[str, Family] = {name: family for family in FAMILIES for name in family.student_pipelines}


def find_family(pipeline: str) -> Family | None:
    """Return the family of a pipeline's class, None for one without an adapter."""
    return PIPELINES.get(pipeline)


def no_adapter(name: str, pipeline: object) -> UsageError:
    """Return the error for a pipeline of another class."""
    family = STUDENT_PIPELINES.get(str(pipeline))
    if family is not None:
        return UsageError(
            f"{name} is a {pipeline}: a student already, of the family {family.title}",
            hint="`ddx distill --from-student` starts from it, on a teacher whose network is like its own",
        )
    return UsageError(
        f"{name} is a {pipeline}; ddx has no adapter for it", hint=f"supported pipelines: {', '.join(PIPELINES)}"
    )


def open_teacher(
    source: Source,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    resolution: int | None = None,
    default_resolution: int | None = None,
    default_guidance: float | None = None,
) -> Teacher:
    """Return the teacher of a pipeline folder; a UsageError lists the supported pipelines when it is none of them."""
    import torch

    from ddx.teachers.components import parse_dtype

    family = find_family(source.pipeline)
    if family is None:
        raise no_adapter(source.name, source.pipeline)
    place = torch.device(device)
    return family.adapter_class(
        source,
        family=family,
        device=place,
        dtype=parse_dtype(dtype, place),
        resolution=resolution,
        default_resolution=default_resolution,
        default_guidance=default_guidance,
    )
