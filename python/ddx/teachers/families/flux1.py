"""FLUX.1 (Black Forest Labs 2024): flow matching, a transformer that takes the guidance scale itself, CLIP and T5."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.extra_input import GUIDANCE, FedNumber, find_number
from ddx.teachers.features import every_fourth
from ddx.teachers.parts import t5_text
from ddx.teachers.parts.batches import of_batches, whole_rows
from ddx.teachers.parts.clip_text import pooled
from ddx.teachers.parts.exact_time import exact_time
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.parts.packing import pack, unpack
from ddx.teachers.truncation import Cut, cut

T5_LENGTH = 512  # tokens of a prompt, as in the pipeline's call


class Flux1Teacher(FlowTeacher):
    """A ``FluxPipeline``. Its network takes t, the guidance scale, and packed latents.

    A network is fed guidance as one with an embedder of ours is; without, it is given the teacher's default.
    """

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("FluxTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "text_encoder_2": t5_text.CLASSES["encoder"],
        "tokenizer_2": t5_text.CLASSES["tokenizer"],
    }
    left_out: ClassVar[tuple[str, ...]] = ("image_encoder", "feature_extractor")
    text_width_key: ClassVar[str] = "joint_attention_dim"
    family_guidance: ClassVar[float] = 3.5

    def student_sign(self) -> tuple[str, str] | None:
        """See :meth:`OpenPipeline.student_sign`: FLUX.1-schnell's network takes no guidance."""
        if self.denoiser_config.get("guidance_embeds"):
            return None
        return "takes no guidance, as FLUX.1-schnell", "--teacher flux1-dev"

    @property
    def patch_size(self) -> int:
        """Two by two cells are packed into the channels of a token, which is why the config says 1."""
        return 2

    @property
    def latent_channels(self) -> int:
        """The channels of the latents; a token of the denoiser has four cells of them."""
        return int(self.denoiser_config["in_channels"]) // 4

    def _load_denoiser(self, dtype: torch.dtype) -> nn.Module:
        network = super()._load_denoiser(dtype)
        network.add_module(GUIDANCE, FedNumber())
        return network

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`."""
        dtype, times, guidance = parameter_dtype(network), self.times(t, x_t), self._guidance(network, x_t)
        assert condition.pooled is not None
        tokens = condition.tokens.to(device=x_t.device, dtype=dtype)
        with self._products(dtype), exact_time(network, "time_text_embed", 1000.0 * times, 1000.0 * guidance):
            output: Tensor = network(
                pack(x_t.to(dtype)),
                timestep=times,
                guidance=guidance,
                pooled_projections=condition.pooled.to(device=x_t.device, dtype=dtype),
                encoder_hidden_states=tokens,
                txt_ids=tokens.new_zeros(tokens.shape[1], 3),
                img_ids=_places(x_t),
                return_dict=False,
            )[0]
        return unpack(output.float(), x_t.shape)

    def _guidance(self, network: nn.Module, x_t: Tensor) -> Tensor:
        """The scale of each row, float32 ``[B]``."""
        fed = find_number(network, GUIDANCE)
        number = None if fed is None else fed.number()
        if number is None:
            return torch.full((len(x_t),), self.default_guidance, dtype=torch.float32, device=x_t.device)
        return number.to(x_t.device).expand(len(x_t))

    @of_batches
    def encode_text(self, texts: list[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: T5's tokens, padding included, and CLIP's pooled state."""
        vectors = pooled(self.tokenizer(), self.text_encoder(), texts, self.device)
        tokenizer, encoder = self.tokenizer("tokenizer_2"), self.text_encoder("text_encoder_2")
        tokens, _ = t5_text.t5_states(tokenizer, encoder, texts, T5_LENGTH, self.device, masked=False)
        return whole_rows(tokens, vectors)

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`: what T5 does not read, for CLIP reads less."""
        return cut(self.tokenizer("tokenizer_2"), text, T5_LENGTH - 1)

    def null_condition(self) -> Condition:
        """The empty prompt. The pipeline has none; guidance does not use it."""
        return self.encode_text([""])[0]

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        return {"max_sequence_length": T5_LENGTH}

    time_linear: ClassVar[str] = "time_text_embed.timestep_embedder.linear_2"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def feature_layers(self, network: nn.Module) -> list[nn.Module]:
        """Every fourth block of each of the two kinds, and the last ones."""
        kinds = ("transformer_blocks", "single_transformer_blocks")
        return [block for kind in kinds for block in every_fourth(list(network.get_submodule(kind)))]  # type: ignore[call-overload]

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.picture_part`: a block returns text and picture."""
        picture: Tensor = output[1]
        return picture


def _places(x_t: Tensor) -> Tensor:
    """Where the tokens of a picture are: ``[h/2 w/2, 3]`` of (0, row, column)."""
    height, width = x_t.shape[2] // 2, x_t.shape[3] // 2
    rows, columns = torch.arange(height, device=x_t.device), torch.arange(width, device=x_t.device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return nn.functional.pad(grid, (1, 0)).to(x_t.dtype)
