"""AuraFlow (fal 2024): flow matching, a transformer of joint and single blocks, SDXL's autoencoder, Pile-T5."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ddx.teachers.components import parameter_dtype
from ddx.teachers.condition import Condition
from ddx.teachers.parts.batches import of_batches, whole_rows
from ddx.teachers.parts.flow import FlowTeacher
from ddx.teachers.parts.t5_text import t5_states
from ddx.teachers.truncation import Cut, cut


class AuraFlowTeacher(FlowTeacher):
    """An ``AuraFlowPipeline``. Its network has no mask: padding is zeros, and it attends to them."""

    part_classes: ClassVar[dict[str, tuple[str, ...]]] = {
        "transformer": ("AuraFlowTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("UMT5EncoderModel",),
        "tokenizer": ("LlamaTokenizer", "LlamaTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
    }
    text_width_key: ClassVar[str] = "joint_attention_dim"
    family_guidance: ClassVar[float] = 3.5
    max_length: ClassVar[int] = 256  # tokens of a prompt, as in the pipeline's call

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.predict`."""
        dtype = parameter_dtype(network)
        with self._products(dtype):
            output: Tensor = network(
                x_t.to(dtype),
                encoder_hidden_states=condition.tokens.to(device=x_t.device, dtype=dtype),
                timestep=self.times(t, x_t),
                return_dict=False,
            )[0]
        return output.float()

    @of_batches
    def encode_text(self, texts: list[str]) -> list[Condition]:
        """See :meth:`Teacher.encode_text`. All positions are kept."""
        states, mask = t5_states(
            self.tokenizer(), self.text_encoder(), texts, self.max_length, self.device, masked=True
        )
        return whole_rows(states * mask[:, :, None])

    def cut(self, text: str) -> Cut | None:
        """See :meth:`Teacher.cut`."""
        return cut(self.tokenizer(), text, self.max_length - 1)

    def _text_fingerprint(self) -> dict[str, str | int | float]:
        return {"max_sequence_length": self.max_length, "posterior": "mode"}

    time_linear: ClassVar[str] = "time_step_proj.linear_2"
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *(f"{part}.{layer}" for part in ("ff", "ff_context") for layer in ("linear_1", "linear_2", "out_projection")),
    )

    feature_blocks: ClassVar[tuple[str, ...]] = ("joint_transformer_blocks", "single_transformer_blocks")

    def picture_part(self, output: Any, x_t: Tensor, condition: Condition) -> Tensor:
        """See :meth:`Teacher.picture_part`: the second of a joint block's outputs, the end of a single one's."""
        is_joint = isinstance(output, tuple)
        tokens: Tensor = output[1] if is_joint else output[:, -self.image_tokens(tuple(x_t.shape[1:])) :]
        return tokens
