"""Tiny random models that score pictures for captions, as folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = [
    "a",
    "red",
    "circle",
    "cat",
    "and",
    "dog",
    "two",
    "small",
    "green",
    "squares",
    "house",
    "below",
    "the",
    "light",
    "blue",
]


def make_scorer(folder: Path, kind: str = "clip") -> Path:
    """Write a model with its tokenizer and image processor; kind: clip, siglip, or vision, which has no text tower."""
    import transformers
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, ViTConfig, ViTModel

    vision: dict[str, Any] = {"image_size": 32, "patch_size": 8, **_SMALL}
    text: dict[str, Any] = {"vocab_size": len(WORDS) + 3, "max_position_embeddings": 16, **_SMALL, **_SPECIAL}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: Any
        if kind == "clip":
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        elif kind == "siglip":
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        else:
            model = ViTModel(ViTConfig(**vision))
        for parameter in model.parameters():  # biases too, and weights large enough for scores that differ
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    if kind == "siglip":
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2)
    else:
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("<pad>", "<bos>", "<eos>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)
