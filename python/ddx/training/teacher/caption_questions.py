"""The text stage: a text encoder learns what captions say before a picture is drawn from them.

SANA draws from a language model that already understands its prompt. A small encoder that learns from the flow's loss
alone takes hundreds of thousands of pictures to tell "a red circle left of a blue square" from its mirror image. Here
the features of a caption's tokens must answer, linearly, what it says: what is named first and second, what stands
where, and how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddx.scenes.captions import COLOURS, SHAPES, SIZES, SceneSpec

ROLES = ("first", "second", "left", "right", "top", "bottom")
"""What an object can be in a scene: the one named first or second, and the one at a place."""

_PLACES_OF = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
_CLASSES_OF_A_ROLE = (len(SHAPES), len(COLOURS), 1 + len(SIZES))
MOST_EQUAL_OBJECTS = 3

CLASSES = (*(_CLASSES_OF_A_ROLE * len(ROLES)), MOST_EQUAL_OBJECTS)
"""Number of classes of each question: shape, colour and size of every role, and how many are equal to the first."""

NOT_ASKED = -1
"""The label of a question about a role that no object has. A causal encoder cannot tell that nothing will follow."""


def scene_labels(specs: Sequence[SceneSpec]) -> Tensor:
    """Return the answer to each question or NOT_ASKED, int64 [N, len(CLASSES)]."""
    return torch.tensor([_labels(spec) for spec in specs])


def _labels(spec: SceneSpec) -> list[int]:
    things = {"first": spec.objects[0]}
    if spec.relation is not None:
        things |= dict(zip(("first", "second"), spec.objects, strict=True))
        things |= dict(zip(_PLACES_OF[spec.relation], spec.objects, strict=True))
    answers: list[int] = []
    for role in ROLES:
        thing = things.get(role)
        if thing is None:
            answers += [NOT_ASKED] * 3
        else:
            size = 0 if thing.size is None else 1 + SIZES.index(thing.size)
            answers += [SHAPES.index(thing.shape), COLOURS.index(thing.colour), size]
    return [*answers, 0 if spec.relation else len(spec.objects) - 1]


def new_reader(text_width: int) -> nn.Linear:
    """Return the linear layer that answers all questions from one token's features; it is thrown away afterwards."""
    return nn.Linear(text_width, sum(CLASSES))


def reading_loss(reader: nn.Linear, tokens: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of the questions, and the share of captions that are read without a mistake.

    Every token is asked all questions, and the last one, which has heard everything, counts as much as all together.

    tokens: [B, L, D], of the captions alone; mask: bool [B, L], true on real tokens, which come first;
    labels: int64 [B, questions].
    """
    last = mask.sum(dim=1) - 1
    rows = torch.arange(len(tokens), device=tokens.device)
    loss = tokens.new_zeros(())
    right = torch.ones_like(last, dtype=torch.bool)
    for logits, answer in zip(reader(tokens).split(CLASSES, dim=-1), labels.unbind(dim=1), strict=True):
        asked = answer != NOT_ASKED
        if not asked.any():
            continue
        everywhere = mask & asked[:, None]
        end = logits[rows, last]
        loss = loss + F.cross_entropy(logits[everywhere], answer[:, None].expand_as(mask)[everywhere])
        loss = loss + F.cross_entropy(end[asked], answer[asked])
        right &= ~asked | (end.argmax(dim=-1) == answer)
    return loss / (2 * len(CLASSES)), right.float().mean()
