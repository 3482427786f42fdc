"""A reward beside a method: what the student draws should suit its caption, as a frozen scorer judges it.

    student  the method's loss - reward_weight score(decode(x), caption)      x: the latents that the student drew

The gradient goes from the score through the frozen autoencoder and the student's last evaluation: ReFL (Xu et al. 2023,
arXiv:2304.05977) and DRaFT-1 (Clark et al. 2023, arXiv:2309.17400). Beside distribution matching, which holds the
student at the teacher, it is DMDR (Jiang et al. 2025, arXiv:2511.13649). Its public code, vvvvvjdy/dmdr (commit
061dc296), train_cc/sit/train_sitxl_refl_deepspeed.py, does this on ImageNet: pictures are cut to the range of pixels,
the mean loss of a frozen DINOv2 classifier is added with weight 0.05, and only after 20,000 of 22,001 steps
(`reward_start`). With captions (commit 3af9698e, train_t2i/sd3/train_sd3_refl_deepspeed.py) what the student of SD 3
sees at one of its steps is rewarded from half of the run on by DFN's CLIP and by HPSv2.1, each by 0.3 relu(0.7 -
cosine): here --reward-weight 0.3 --reward-start 0.5, but for cosines above 0.7. DMDR's form by policy gradients, and
its dynamic guidance and re-noising, are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddx.config import option
from ddx.errors import UsageError
from ddx.methods.base import STUDENT, Batch, Losses, Method, Turn
from ddx.methods.parts.around import Around
from ddx.methods.parts.config import above_zero, at_least, within
from ddx.networks.scorers import Scorer, load_scorer

SCORER = "scorer"
PIXELS_AT_ONCE = 1024 * 1024  # that are decoded at a time: one picture of 1024 x 1024, or more of smaller ones


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Settings of a reward, for methods that look at what the student draws."""

    reward: str | None = option(
        None,
        "scorer of pictures for their captions that the student is rewarded by: a model of transformers such as "
        "yuvalkirstain/PickScore_v1 (none: no reward)",
        metavar="PATH|ID",
    )
    reward_weight: float = option(
        1.0,
        "weight of the reward, a cosine of picture and caption; --loss-balance norm keeps it in proportion to the "
        "method's loss",
    )
    reward_start: float = option(0.0, "share of the run before the reward begins")
    reward_share: float = option(
        1.0, "share of the rows that are decoded and scored, drawn at random; each counts the more"
    )

    def __post_init__(self) -> None:
        above_zero(self, "reward_share")
        at_least(self, 0.0, "reward_weight")
        within(self, 0.0, 1.0, "reward_start", "reward_share")
        unused = [spec.name for spec in fields(RewardConfig) if getattr(self, spec.name) != spec.default]
        if unused and self.reward is None:
            name = unused[0]
            raise UsageError(
                f"{name} = {getattr(self, name)}: there is no reward",
                hint=f"--reward yuvalkirstain/PickScore_v1 adds one, or leave {name} away",
            )


class WithReward(Around):
    """`method`, and the reward of what its student draws as a second loss."""

    config: RewardConfig
    _scorer: Scorer | None = None

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        assert isinstance(self.config, RewardConfig)

    @property
    def scorer(self) -> Scorer:
        """The frozen scorer; loaded at first use. DdxError where it is not to be had."""
        if self._scorer is None:
            # what is loaded on the way must not draw from the numbers that networks start from
            with torch.random.fork_rng(devices=[]):
                self._scorer = load_scorer(str(self.config.reward), self.teacher.device)
        return self._scorer

    @property
    def reads_captions(self) -> bool:
        """See :meth:`Method.reads_captions`."""
        return True

    def onlookers(self) -> Mapping[str, nn.Module]:
        """Return the scorer and the autoencoder, which the gradient of the score goes through."""
        return {**super().onlookers(), SCORER: self.scorer.model, "autoencoder": self.teacher.vae()}

    def losses(self, turn: Turn, batch: Batch, networks: Mapping[str, nn.Module]) -> Losses:
        """Return the method's losses, with the reward of what was drawn as a second of the student."""
        losses = super().losses(turn, batch, networks)
        if losses.generated is None or batch.step < int(self.config.reward_start * self.train_steps):
            return losses
        scores = self.scored(losses.generated, losses.dropped.get(STUDENT), batch)
        reward = (-self.config.reward_weight / self.config.reward_share) * scores.nan_to_num()
        second = losses.secondary.get(STUDENT, 0.0) + reward
        return replace(
            losses,
            secondary={**losses.secondary, STUDENT: second},
            tracked={**losses.tracked, "reward": scores.detach()},
        )

    def scored(self, x: Tensor, dropped: Tensor | None, batch: Batch) -> Tensor:
        """Return the score of each row, `[B]`, differentiable by x; NaN, without gradient, of rows that have none.

        dropped: bool `[B]`, rows whose x may not be finite; they are scored as zeros would be.
        """
        assert batch.captions is not None
        if dropped is not None:
            x = torch.where(dropped.reshape(-1, 1, 1, 1), 0.0, x)
        scores = x.new_full((len(x),), float("nan"), dtype=torch.float32)
        text = self.scorer.text_features(batch.captions, x.device)
        rows = torch.arange(len(x), device=x.device)
        if self.config.reward_share < 1.0:
            rows, _ = batch.random.pick(self.config.reward_share)
        part = self.rows_to_pass(rows)
        if not len(part):
            return scores
        side = self.teacher.compression
        size = max(1, PIXELS_AT_ONCE // (side * side * x.shape[-2] * x.shape[-1]))
        parts = [
            checkpoint(self._score, some, features, use_reentrant=False)
            for some, features in zip(x[part].split(size), text[part].split(size), strict=True)
        ]
        return scores.index_copy(0, rows, torch.cat(parts).float()[: len(rows)])

    def _score(self, x: Tensor, text: Tensor) -> Tensor:
        return self.scorer.scores(self.teacher.decode_pixels(x), text)

    def stretched(self, share: float) -> tuple[str, ...]:
        """See :meth:`Method.stretched`."""
        own = ("reward_start",) if self.config.reward_start > share else ()
        return (*super().stretched(share), *own)

    def export_notes(self) -> dict[str, Any]:
        """Return the method's notes, and which scorer taught the student."""
        notes: dict[str, Any] = {"reward": self.config.reward, "reward_weight": self.config.reward_weight}
        revision = None if self._scorer is None else self._scorer.revision
        return {**super().export_notes(), **notes, **({"reward_revision": revision} if revision else {})}
