"""Training of a scorer of scenes: contrastive, among captions that differ in one thing, and its accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddx.networks.scene_scorer import SceneScorer, SceneScorerConfig
from ddx.scenes.captions import COLOURS, COUNTS, RELATIONS, SHAPES, SIZES, SceneSpec, sample_scenes, split_of
from ddx.scenes.checker import SIZE_BOUNDARY, FoundObject
from ddx.scenes.hard_negatives import CHANGES, altered, as_found, truths
from ddx.scenes.render import RESOLUTION, paint, place

GROUP = 4  # a scene, and others with one thing changed, stand in a batch together
WORDS = ("<pad>", "a", "of", *COUNTS, *SIZES, *COLOURS, *SHAPES, *(f"{s}s" for s in SHAPES), "crosses")
WORDS = tuple(dict.fromkeys((*WORDS, *" ".join(RELATIONS).split())))
NUM_FACTS = 10  # of each colour: is it there; which of four shapes; how many; x, y; radius; is it large


class Pictures:
    """Drawn scenes in groups: pictures float32 `[N, 3, 64, 64]` in [-1, 1], what is in them, and their captions."""

    def __init__(self, specs: Sequence[SceneSpec], seed: int) -> None:
        rng = np.random.default_rng(seed)
        drawn = [place(spec, rng) for spec in specs]
        self.specs = specs
        self.pixels = torch.from_numpy(paint(drawn, rng)).permute(0, 3, 1, 2)
        self.found = [as_found(spec, objects) for spec, objects in zip(specs, drawn, strict=True)]
        self.facts = torch.from_numpy(np.stack([_facts(objects) for objects in self.found]))
        self.words = words_of([spec.caption for spec in specs])

    def at(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return pixels, facts, words, and which picture shows which caption, bool `[B, B]`."""
        shown = truths([self.found[row] for row in rows], [self.specs[row] for row in rows])
        pixels = self.pixels[list(rows)].float() / 127.5 - 1.0
        return pixels, self.facts[list(rows)], self.words[list(rows)], torch.from_numpy(shown)


def groups(count: int, seed: int) -> list[SceneSpec]:
    """Return `count` groups of scenes of the train split, one after the other."""
    rng, found = np.random.default_rng(seed), []
    for spec in sample_scenes(count, seed, "train"):
        found.append(spec)
        while len(found) % GROUP:
            other, _ = altered(spec, rng)
            if split_of(other) == "train":
                found.append(other)
    return found


def words_of(captions: Sequence[str]) -> Tensor:
    """Return the numbers of the words, int64 `[B, 16]`."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    found = torch.zeros(len(captions), 16, dtype=torch.int64)
    for row, caption in enumerate(captions):
        for column, word in enumerate(caption.split()):
            found[row, column] = numbers[word]
    return found


def train(
    seconds: float, *, num_groups: int = 2048, batch: int = 96, rate: float = 2e-3, log: Callable[[str], None]
) -> SceneScorer:
    """Return a scorer that was trained for so many seconds of processor time, drawing the scenes included."""
    start, rng = time.process_time(), np.random.default_rng(0)
    torch.manual_seed(0)
    pictures = Pictures(groups(num_groups, 1), 2)
    model = SceneScorer(SceneScorerConfig(num_words=len(WORDS)))
    facts = nn.Linear(model.config.projection_dim, len(COLOURS) * NUM_FACTS)
    parameters = [*model.parameters(), *facts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    step, shown = 0, 0.0
    while (share := (time.process_time() - start) / seconds) < 1.0:
        rows = rng.choice(num_groups, batch // GROUP, replace=False)[:, None] * GROUP + np.arange(GROUP)
        pixels, truth_facts, words, truth = pictures.at(rows.ravel().tolist())
        image, text = model.get_image_features(roughened(pixels)), model.get_text_features(words)
        loss = contrast(image, text, truth, model.logit_scale)
        told = sum(fact_loss(facts(features), truth_facts) for features in (image, text))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))
        optimizer.zero_grad()
        (loss + told).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if share >= shown:
            shown = share + 0.2
            log(f"{share:.0%}  step {step}  contrast {loss:.3f}  facts {told:.3f}  {accuracy(model, 100)}")
    model.eval()
    return model


def contrast(image: Tensor, text: Tensor, truth: Tensor, logit_scale: Tensor) -> Tensor:
    """Return CLIP's loss, where captions that also hold of a picture are no negatives of it."""
    image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
    own = torch.arange(len(image))
    also = truth & ~torch.eye(len(image), dtype=torch.bool)
    logits = (logit_scale.exp().clamp(max=100.0) * image @ text.T).masked_fill(also, -1e4)
    return 0.5 * (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own))


def fact_loss(told: Tensor, facts: Tensor) -> Tensor:
    """Return how far what features tell of each colour is from `facts`; of text, what it leaves open on average."""
    told, there = told.unflatten(1, (len(COLOURS), NUM_FACTS)), facts[..., 0] > 0
    loss = 6.0 * functional.binary_cross_entropy_with_logits(told[..., 0], facts[..., 0])
    told, known = told[there], facts[there]
    loss = loss + functional.cross_entropy(told[:, 1:5], known[:, 1].long())
    loss = loss + 2.0 * functional.mse_loss(told[:, 5:9], known[:, 2:6])
    return loss + functional.binary_cross_entropy_with_logits(told[:, 9], known[:, 6])


def roughened(pixels: Tensor) -> Tensor:
    """Return pictures a third of which are blurred and half of which are noisy, as what a student draws may be."""
    blurred = functional.interpolate(functional.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    kind = torch.rand(len(pixels), 1, 1, 1)
    noise = 0.2 * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(pixels)
    return torch.where(kind < 0.33, blurred, pixels) + torch.where(kind > 0.5, noise, 0.0)


def _facts(found: Sequence[FoundObject]) -> np.ndarray:
    """Of each colour: is it there, shape, how many - 2, mean x and y, radius, is it large."""
    facts = np.zeros((len(COLOURS), 7), np.float32)
    for place_, colour in enumerate(COLOURS):
        mine = [o for o in found if o.colour == colour]
        if mine:
            x, y, radius = (float(np.mean([getattr(o, name) for o in mine])) for name in ("x", "y", "radius"))
            middle = RESOLUTION / 2
            shape = SHAPES.index(mine[0].shape or "")
            facts[place_] = (
                1,
                shape,
                len(mine) - 2,
                x / middle - 1,
                y / middle - 1,
                (radius - SIZE_BOUNDARY) / 2,
                radius > SIZE_BOUNDARY,
            )
    return facts


@torch.no_grad()
def accuracy(model: SceneScorer, count: int, negatives: int = 8, seed: int = 7) -> dict[str, float]:
    """Return how often held-out pictures prefer their caption: to all of the negatives, and to those of each change."""
    training, rng = model.training, np.random.default_rng(seed)
    model.eval()
    specs = sample_scenes(count, seed, "held-out")
    pictures = Pictures(specs, seed + 1)
    image = functional.normalize(model.get_image_features(pictures.pixels.float() / 127.5 - 1.0), dim=-1)
    all_of: list[bool] = []
    by_change: dict[str, list[bool]] = {change: [] for change in CHANGES}
    for row, spec in enumerate(specs):
        wrong: dict[str, str] = {}
        for _ in range(30 * negatives):
            if len(wrong) == negatives:
                break
            other, change = altered(spec, rng)
            if not truths([pictures.found[row]], [other])[0, 0]:
                wrong[other.caption] = change
        text = functional.normalize(model.get_text_features(words_of([spec.caption, *wrong])), dim=-1)
        scores = text @ image[row]
        wins = scores[0] > scores[1:]
        all_of.append(bool(wins.all()))
        for change, win in zip(wrong.values(), wins.tolist(), strict=True):
            by_change[change].append(win)
    model.train(training)
    found = {"all": all_of, **by_change}
    return {name: round(float(np.mean(values)), 3) if values else math.nan for name, values in found.items()}


def save(model: SceneScorer, folder: Path) -> Path:
    """Write the model with its tokenizer and image processor, as `--reward` and `AutoModel` open it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer: Any = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<pad>",
        model_max_length=16,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    size = {"height": RESOLUTION, "width": RESOLUTION}
    transformers.CLIPImageProcessor(
        size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder
