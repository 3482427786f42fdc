"""Captions a second through SANA's text edge: ours beside `SanaPipeline.encode_prompt`, and both equal.

Gemma 2 of the real width with random weights, two of its 26 layers (the time of both programs grows with them alike),
float32 on one thread of a processor. The tokenizer is trained on the spot so that a word is one token: the instruction
is then about as long as with Gemma's own. The pipeline gets as many captions at a time as ours puts into a batch.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

import torch
from _environment import machine, write_result
from _peers import Work, paired
from diffusers import SanaPipeline

from ddx.teachers.families.sana_text import PromptEncoder, pipeline_defaults
from ddx.teachers.parts.batches import ROWS
from pipelines import gemma_encoder, gemma_tokenizer

WIDTH, LAYERS = 2304, 2
CAPTIONS = 64  # a turn of ours; precompute gives 256 at a time
LEAST, MOST = 10, 20  # words, as LAION's captions have tokens
VOCABULARY = """
    a the of on in with and near under behind photograph painting vintage wooden red blue green small large old new
    bright dark table house street garden river mountain window flower dog cat horse bird child woman man boat train
    bridge market kitchen chair lamp book cup bottle dress jacket winter summer evening morning light cloud
"""
ROUNDS = 3


@torch.no_grad()
def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    environment = machine()
    instruction, _ = pipeline_defaults()
    words = VOCABULARY.split()
    tokenizer = gemma_tokenizer([*re.findall(r"\w+|[^\w\s]", instruction), *words], vocab_size=4000)
    text_encoder = gemma_encoder(
        len(tokenizer), WIDTH, layers=LAYERS, intermediate=9216, heads=8, kv_heads=4, head_dim=256
    ).eval()
    pipeline = SanaPipeline(tokenizer, text_encoder, vae=None, transformer=None, scheduler=None)
    encoder = PromptEncoder(tokenizer, text_encoder)
    draw = random.Random(0)
    captions = [" ".join(draw.choices(words, k=draw.randint(LEAST, MOST))) for _ in range(CAPTIONS)]

    def encode_prompt() -> tuple[torch.Tensor, torch.Tensor]:
        tokens, mask, *_ = pipeline.encode_prompt(
            captions[:ROWS],
            do_classifier_free_guidance=False,  # else it encodes the empty prompt once more every time
            device=torch.device("cpu"),
            complex_human_instruction=instruction.split("\n"),
        )
        return tokens, mask

    ours = Work(lambda: encoder.encode(captions), CAPTIONS)
    peers = {"SanaPipeline.encode_prompt": Work(encode_prompt, ROWS)}
    result = {
        "tokens of the instruction": len(encoder.prefix_ids),
        "batch size": ROWS,
        "layers": LAYERS,
        **paired(ours, peers, rounds=ROUNDS),
        "largest difference over largest value": difference(encoder, captions, *encode_prompt()),
    }
    print(result)
    print(f"wrote {write_result('captions', result, environment)}")


def difference(encoder: PromptEncoder, captions: list[str], tokens: torch.Tensor, mask: torch.Tensor) -> float:
    """How far our embeddings are from the pipeline's, whose masks must say the same lengths."""
    largest = 0.0
    for condition, row, real in zip(encoder.encode(captions), tokens, mask.bool(), strict=False):
        assert len(condition.tokens[0]) == int(real.sum()), "other lengths than the pipeline's"
        largest = max(largest, float((condition.tokens[0] - row[real]).abs().max()))
    return float(f"{largest / float(tokens.abs().max()):.1e}")


if __name__ == "__main__":
    main()
