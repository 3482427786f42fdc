"""The standard prompts that grids, pages and `ddx sample` without prompts are drawn with."""

from __future__ import annotations

# Own words, one difficulty each: texture, people, counting, relation, style, light, lettering, small detail.
STANDARD_PROMPTS: tuple[str, ...] = (
    "a close photograph of a ginger cat asleep on a knitted blue blanket, soft window light",
    "portrait of an old fisherman with a white beard and a yellow raincoat, rain in the background",
    "three ripe pears and one lemon on a wooden table, studio photograph",
    "a small red cube on top of a large green sphere, grey background",
    "a watercolour painting of a mountain village under the first snow",
    "a lighthouse on a cliff at dusk, long exposure, waves turned into mist",
    "a shop window with a neon sign that says OPEN, night street, wet pavement",
    "a hummingbird drinking from a purple flower, every feather in focus",
)


def scene_prompts() -> tuple[str, ...]:
    """Captions of held-out scenes, for the teacher that draws only those."""
    from ddx.scenes.captions import sample_captions

    return tuple(sample_captions(8, seed=0, split="held-out"))
