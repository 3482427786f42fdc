"""FLUX.2 klein (Black Forest Labs 2026): flow matching, dual then single streams, normalised latents, Qwen3 text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ddx.errors import DdxError
from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.families.flux2_names import ORIGINAL
from ddx.teachers.hub import weight_files
from ddx.teachers.parts.batches import of_batches, whole_rows
from ddx.teachers.parts.chat_text import ChatText, hidden_states
from ddx.teachers.parts.exact_time import exact_time
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.truncation import Cut

LAYERS = (9, 18, 27)  # whose states the pipeline takes
LIMIT = 512  # tokens, padding included, which the network attends to


class Flux2KleinTeacher(FlowTeacher):
    """A ``Flux2KleinPipeline`` that is not distilled.

    A latent cell is two by two of the autoencoder's, normalised by the batch statistics in the autoencoder's weights.
    """

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        "text_encoder": ("Qwen3ForCausalLM",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    }
    text_width_key: ClassVar[str] = "joint_attention_dim"
    family_guidance: ClassVar[float] = 4.0
    doubles_batch: ClassVar[bool] = False
    folds_numbers: ClassVar[bool] = False
    student_settings: ClassVar[Mapping[str, Any]] = {"is_distilled": True}

    def student_sign(self) -> tuple[str, str] | None:
        """See :meth:`OpenPipeline.student_sign`: the pipeline says it itself."""
        if not self.source_info.index.get("is_distilled"):
            return None
        cure = "--teacher flux2-klein-base-4b, or --teacher black-forest-labs/FLUX.2-klein-base-9B"
        return "says is_distilled in its model_index.json", cure

    @property
    def compression(self) -> int:
        """16 for the published autoencoder: a cell here is two by two of its own."""
        return 2 * super().compression

    def _statistics(self) -> tuple[list[float], list[float]]:
        """The mean of each channel, and its standard deviation."""
        return self._once("statistics of latents", self._read_statistics)  # type: ignore[no-any-return]

    def _read_statistics(self) -> tuple[list[float], list[float]]:
        from safetensors import SafetensorError, safe_open

        try:
            (file,) = weight_files(self.folder / "vae")
            with safe_open(file, framework="pt") as weights:
                mean, variance = (weights.get_tensor(f"bn.running_{name}").double() for name in ("mean", "var"))
        except (OSError, ValueError, SafetensorError) as error:
            raise DdxError(f"cannot read the statistics of latents in {self.folder / 'vae'}: {error}") from error
        return mean.tolist(), (variance + float(self.vae_config["batch_norm_eps"])).sqrt().tolist()

    @property
    def scaling_factor(self) -> list[float]:
        """One over the standard deviation of each channel."""
        return [1.0 / deviation for deviation in self._statistics()[1]]

    @property
    def shift_factor(self) -> list[float]:
        """The mean of each channel."""
        return self._statistics()[0]

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, logvar = super()._encode_pixels(pixels)
        assert logvar is not None
        return pixel_unshuffle(mean, 2), pixel_unshuffle(logvar, 2)

    def _decode_latents(self, latents: Tensor) -> Tensor:
        return super()._decode_latents(pixel_shuffle(latents, 2))

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`."""
        dtype, times = parameter_dtype(network), self.times(t, x_t)
        tokens = condition.tokens.to(device=x_t.device, dtype=dtype)
        pictures = _positions(1, *x_t.shape[2:], 1, device=x_t.device)
        with self._products(dtype), exact_time(network, "time_guidance_embed.time_proj", 1000 * times):
            output: Tensor = network(
                hidden_states=x_t.to(dtype).flatten(2).transpose(1, 2),
                encoder_hidden_states=tokens,
                timestep=times,
                img_ids=pictures.expand(len(x_t), -1, -1),
                txt_ids=_positions(1, 1, 1, tokens.shape[1], device=x_t.device).expand(len(x_t), -1, -1),
                return_dict=False,
            )[0]
        return output.float().transpose(1, 2).reshape(x_t.shape)

    def dynamic_shift(self, latent_shape: tuple[int, ...], num_steps: int) -> float | None:
        """Here it depends on the number of steps as well."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        if super().dynamic_shift(latent_shape, num_steps) is None:
            return None
        return float(compute_empirical_mu(self.image_tokens(latent_shape), num_steps))

    @property
    def _chat(self) -> ChatText:
        chat: ChatText = self._once("chat", lambda: ChatText(tokenizer=self.tokenizer(), thinking=False, limit=LIMIT))
        return chat

    @of_batches
    def encode_text(self, texts: list[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`: all 512 rows, since those of the padding differ and are attended to."""
        ids, mask = self._chat.padded(texts)
        return whole_rows(hidden_states(self.text_encoder(), ids, mask, LAYERS, device=self.device))

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`."""
        return self._chat.cut(text)

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        return {"max_sequence_length": LIMIT, "text_layers": ",".join(map(str, LAYERS))}

    time_linear: ClassVar[str] = "time_guidance_embed.timestep_embedder.linear_2"
    lora_targets = (
        *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        *("to_qkv_mlp_proj", "to_out"),
    )

    def comfyui_layer(self, name: str) -> tuple[str, int]:
        """See :meth:`Teacher.comfyui_layer`: the authors' layers, which ComfyUI's network has."""
        return ORIGINAL.comfyui_layer(name)

    feature_blocks: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """The second of two streams, or what follows the text in the single one."""
        picture: Tensor = output[1] if isinstance(output, tuple) else output[:, condition.tokens.shape[1] :]
        return picture


def _positions(*counts: int, device: torch.device) -> Tensor:
    """Return the four coordinates of all places of a grid, ``[1, N, 4]``, the last one changing first."""
    axes = torch.meshgrid(*(torch.arange(count, device=device) for count in counts), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(1, -1, len(counts))
