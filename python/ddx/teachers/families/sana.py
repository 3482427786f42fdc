"""SANA (Xie et al. 2024): flow matching, a linear-attention transformer, a deep-compression autoencoder, Gemma 2."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddx.errors import UsageError
from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.families.sana_fused import alone, fuse_if_faster, kept_text
from ddx.teachers.families.sana_names import ORIGINAL
from ddx.teachers.families.sana_sprint import sprint_weights
from ddx.teachers.families.sana_text import PromptEncoder, pipeline_defaults, preprocess
from ddx.teachers.hub import Source
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.stored_weights import weights_at_once
from ddx.teachers.truncation import Cut, cut


class SanaTeacher(FlowTeacher):
    """A ``SanaPipeline``. Predicts the flow velocity ``eps - x0``; its network takes ``1000 t``.

    In float16, in which the 600M models were trained with clamped activations, diffusers' linear attention clamps its
    output by itself; the autoencoder and Gemma then run in bfloat16.
    """

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("SanaTransformer2DModel",),
        "vae": ("AutoencoderDC",),
        "text_encoder": ("Gemma2Model", "Gemma2PreTrainedModel"),
        # a tokenizer of one's own making is saved under the library's generic names
        "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    }
    text_width_key: ClassVar[str] = "caption_channels"
    family_guidance: ClassVar[float] = 4.5
    has_posterior: ClassVar[bool] = False
    text_is_masked: ClassVar[bool] = True

    @property
    def compression(self) -> int:
        """32 for the published autoencoder."""
        return int(2 ** (len(self.vae_config["encoder_block_out_channels"]) - 1))

    @property
    def resolution_multiple(self) -> int:
        """The pipeline refuses what 32 does not divide."""
        return math.lcm(32, super().resolution_multiple)

    @property
    def vae_dtype(self) -> torch.dtype:
        """bfloat16 instead of float16, in which the autoencoder's activations overflow."""
        return torch.bfloat16 if self.dtype == torch.float16 else self.dtype

    @property
    def text_dtype(self) -> torch.dtype:
        """bfloat16 instead of float16: Gemma 2 was trained in bfloat16 and overflows."""
        return torch.bfloat16 if self.dtype == torch.float16 else self.dtype

    def fast(self, network: nn.Module) -> nn.Module:
        """See :meth:`Teacher.fast`."""
        return fuse_if_faster(network)

    def text_alone(self, network: nn.Module, num_rows: int) -> AbstractContextManager[None]:
        """See :meth:`Teacher.text_alone`: with kernels; attention masks what is padded."""
        return alone(network, num_rows)

    def same_text(self, network: nn.Module) -> AbstractContextManager[None]:
        """See :meth:`Teacher.same_text`: with kernels, at 4 D bytes a token of text, row and block in bfloat16."""
        return kept_text(network)

    def _load_denoiser(self, dtype: torch.dtype) -> nn.Module:
        return self.fast(super()._load_denoiser(dtype))

    def prepared_network(self, *, qk_norm: bool, dense_time: bool) -> nn.Module:
        """See :meth:`Teacher.prepared_network`. The norms start at 1, everything else at the teacher's weights."""
        from diffusers import SanaTransformer2DModel

        with weights_at_once("its weights are put into another network, that is prepared"):
            plain: Any = super()._load_denoiser(torch.float32)
        changes: dict[str, Any] = {}
        if qk_norm and plain.config.qk_norm is None:
            changes["qk_norm"] = "rms_norm_across_heads"
        if dense_time and plain.config.timestep_scale == 1.0:
            changes["timestep_scale"] = 1.0 / self.process.num_train_timesteps
        if not changes:
            raise UsageError(
                f"{self.name} has what it would be prepared for already", hint="distil it as it is: ddx distill"
            )
        network = SanaTransformer2DModel.from_config({**plain.config, **changes})
        missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
        assert not unexpected and all(".norm_" in name for name in missing), (missing, unexpected)
        return fuse_if_faster(network.to(self.device).train().requires_grad_(True))

    def published_weights(self, source: Source, guidance: float) -> dict[str, Tensor]:
        """See :meth:`Teacher.published_weights`: of a SANA-Sprint."""
        return sprint_weights(self, source, guidance)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`. Time stays float64 until the last cast, to the float32 of the embedding."""
        dtype = parameter_dtype(network)
        with self._products(dtype):
            output: Tensor = network(
                x_t.to(dtype),
                timestep=self._timestep(network, t, x_t),
                **self._text(condition, x_t.device, dtype),
                return_dict=False,
            )[0]
        return _mean(output, x_t)

    @torch.no_grad()
    def predict_dual(
        self, network: nn.Module, x_t: Tensor, dx_t: Tensor, t: Tensor, dt: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Teacher.predict_dual`: by the dual-number forward of the whole transformer."""
        from ddx.teachers.families.sana_dual import dual_forward  # with Triton, which few commands need

        dtype = parameter_dtype(network)
        with self._products(dtype):
            output, tangent = dual_forward(
                network,
                x_t.to(dtype),
                dx_t.to(dtype),
                self._timestep(network, t, x_t),
                self._timestep(network, dt, x_t),  # the network's time is a multiple of ours
                **self._text(condition, x_t.device, dtype),
            )
        return _mean(output, x_t), _mean(tangent, x_t)

    def _timestep(self, network: nn.Module, t: Tensor, x_t: Tensor) -> Tensor:
        """The time on the scale of this network, which need not be the teacher's: a prepared one has another."""
        config: Any = getattr(network, "module", network).config
        times = self.process.model_time(t).expand(len(x_t)) * float(getattr(config, "timestep_scale", 1.0))
        return times.to(device=x_t.device, dtype=torch.float32)

    @staticmethod
    def _text(condition: Condition, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            "encoder_hidden_states": condition.tokens.to(device=device, dtype=dtype),
            "encoder_attention_mask": condition.mask.to(device),
        }

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        vae: Any = self.vae()
        return vae.encode(pixels, return_dict=False)[0], None

    def _prompt_encoder(self) -> PromptEncoder:
        encoder: PromptEncoder = self._once(
            "prompt_encoder", lambda: PromptEncoder(self.tokenizer(), self.text_encoder(), self.device)
        )
        return encoder

    def encode_text(self, prompts: Sequence[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: lower-cased, behind the instruction, its kept tokens alone."""
        with self._products(self.text_dtype):
            return self._prompt_encoder().encode(prompts)

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`. The limit counts the instruction, whose last token joins the first word."""
        tokenizer, (instruction, max_length) = self.tokenizer(), pipeline_defaults()
        text = preprocess([text])[0]
        if len(text.encode()) < max_length:
            return None
        num_before = len(tokenizer.encode(instruction, add_special_tokens=False)) - 1
        return cut(tokenizer, instruction + text, num_before + max_length - 1, num_before)

    def null_condition(self) -> Condition:
        """The empty prompt without the instruction: one start token."""
        with self._products(self.text_dtype):
            return self._prompt_encoder().encode_negative("")

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        instruction, max_length = pipeline_defaults()
        return {
            "instruction": hashlib.sha256(instruction.encode()).hexdigest()[:16],
            "max_sequence_length": max_length,
        }

    def time_embedding_linear(self, network: nn.Module) -> nn.Linear:
        """``time_embed.emb.timestep_embedder.linear_2``."""
        embedder: Any = network.get_submodule("time_embed")
        linear = getattr(embedder, "emb", embedder).timestep_embedder.linear_2
        assert isinstance(linear, nn.Linear)
        return linear

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point")

    def comfyui_layer(self, name: str) -> tuple[str, int]:
        """See :meth:`Teacher.comfyui_layer`: the published checkpoints' own layers, which ComfyUI's SANA nodes have."""
        return ORIGINAL.comfyui_layer(name)


def _mean(output: Tensor, x_t: Tensor) -> Tensor:
    """The prediction in float32: models with a learned variance carry that in the second half."""
    return (output.chunk(2, dim=1)[0] if output.shape[1] == 2 * x_t.shape[1] else output).float()
