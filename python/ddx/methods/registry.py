"""The methods that ddx knows, listed without torch; a method's file is imported when it is chosen."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddx.errors import UsageError, nearest

if TYPE_CHECKING:
    from ddx.methods.base import Method
    from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
    from ddx.methods.parts.flow_method import FlowMethod
    from ddx.teachers.base import Teacher


TRAINED = ("student", "fake_score")  # of the teacher's size, with an optimiser
_AVERAGES = ("target", "first", "before")  # the others, heads and weights, are small


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What one needs to know to choose a method, and where it is: `<file>.<class>` in this folder."""

    name: str
    title: str
    paper: str
    data: str  # "images": pictures with captions; "captions": captions are enough
    networks: tuple[str, ...]  # beside the frozen teacher
    relative_cost: float  # forward passes of one network for one row of one step; a backward pass counts as two
    class_name: str
    config_name: str
    judges: bool = False  # whether one of these networks is a discriminator too

    @property
    def memory(self) -> float:
        """Bytes a weight of the teacher's: weights, gradients and moments of what is trained, averages, the teacher.

        With whole networks in float32 and the teacher and its kind in half precision; activations come on top.
        """
        trained = sum(name in TRAINED for name in self.networks)
        averages = sum(name in _AVERAGES for name in self.networks)
        return 16.0 * trained + 4.0 * averages + 4.0 + 2.0

    @property
    def method(self) -> type[FlowMethod]:
        """Its class; imports torch."""
        method: type[FlowMethod] = _load(self.class_name)
        return method

    @property
    def config(self) -> type[Any]:
        """The class of its settings; imports torch."""
        config: type[Any] = _load(self.config_name)
        return config

    @property
    def takes_discriminator(self) -> bool:
        """Whether a discriminator may be added (`--gan-weight`): to every method that has none of its own."""
        return self.name in METHODS and "discriminator" not in self.networks and not self.judges

    @property
    def configs(self) -> tuple[type[Any], ...]:
        """The classes of all its settings: its own, and those of a discriminator that may be added; imports torch."""
        from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig

        return (self.config, AddedDiscriminatorConfig) if self.takes_discriminator else (self.config,)


def _load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"ddx.methods.{module}"), attribute)


def _row(
    name: str,
    class_name: str,
    config_name: str,
    cost: float,
    data: str,
    networks: str,
    title: str,
    paper: str,
    *,
    judges: bool = False,
) -> tuple[str, MethodSpec]:
    return name, MethodSpec(
        name=name,
        title=title,
        paper=paper,
        data=data,
        networks=tuple(networks.split()),
        relative_cost=cost,
        class_name=class_name,
        config_name=config_name,
        judges=judges,
    )


METHODS: dict[str, MethodSpec] = dict(
    (
        # consistency models
        _row("lcm", "lcm.LCM", "lcm.LCMConfig",
             6.0, "images", "student target",
             "Latent consistency distillation with guidance",
             "Luo et al. 2023, Latent Consistency Models, arXiv:2310.04378"),
        _row("pcm", "pcm.PCM", "pcm.PCMConfig",
             6.0, "images", "student",
             "Consistency within each phase of the path, and a step for each of them",
             "Wang et al. 2024, Phased Consistency Models, arXiv:2405.18407"),
        _row("cd", "cd.CD", "cd.CDConfig",
             7.0, "images", "student target",
             "Consistency distillation with Heun's method",
             "Song et al. 2023, Consistency Models, arXiv:2303.01469"),
        _row("ct", "ct.CT", "ct.CTConfig",
             4.0, "images", "student target",
             "Consistency training, without a teacher's ODE",
             "Song et al. 2023, Consistency Models, arXiv:2303.01469"),
        _row("ict", "ict.ICT", "ict.ICTConfig",
             4.0, "images", "student",
             "Improved consistency training",
             "Song & Dhariwal 2023, Improved Techniques for Training Consistency Models, arXiv:2310.14189"),
        _row("ect", "ect.ECT", "ect.ECTConfig",
             4.0, "images", "student",
             "Easy consistency tuning, from diffusion model to consistency model in stages",
             "Geng et al. 2024, Consistency Models Made Easy, arXiv:2406.14548"),
        _row("tcm", "tcm.TCM", "tcm.TCMConfig",
             4.5, "images", "student first",
             "Truncated consistency models: a second stage on the noisy times alone",
             "Lee et al. 2024, Truncated Consistency Models, arXiv:2410.14895"),
        _row("scm", "scm.SCM", "scm.SCMConfig",
             7.0, "images", "student weight",
             "Continuous-time consistency models in TrigFlow, distilled or trained",
             "Lu & Song 2024, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, "
             "arXiv:2410.11081"),
        # score distillation
        _row("sid", "sid.SiD", "sid.SiDConfig",
             16.0, "captions", "student fake_score",
             "Score identity distillation, through the gradients of both scores",
             "Zhou et al. 2024, Score identity Distillation, arXiv:2404.04057"),
        _row("sid-lsg", "sid_lsg.SiDLSG", "sid_lsg.SiDLSGConfig",
             22.0, "captions", "student fake_score",
             "SiD whose fake score has guidance of its own",
             "Zhou et al. 2024, Long and Short Guidance in Score identity Distillation, arXiv:2406.01561"),
        _row("sida", "sida.SiDA", "sida.SiDAConfig",
             31.0, "images", "student fake_score",
             "SiD whose fake score is a discriminator too",
             "Zhou et al. 2024, Adversarial Score identity Distillation, arXiv:2410.14919", judges=True),
        _row("dmd2", "dmd2.DMD2", "dmd2.DMD2Config",
             59.0, "images", "student fake_score discriminator",
             "Distribution matching with a discriminator, in one step or several",
             "Yin et al. 2024, Improved Distribution Matching Distillation, arXiv:2405.14867"),
        _row("dmd", "dmd.DMD", "dmd.DMDConfig",
             40.0, "captions", "student fake_score",
             "Distribution matching with a regression on the teacher's own pairs",
             "Yin et al. 2024, One-step Diffusion with Distribution Matching Distillation, arXiv:2311.18828"),
        _row("decoupled-dmd", "decoupled_dmd.DecoupledDMD", "decoupled_dmd.DecoupledDMDConfig",
             64.0, "captions", "student fake_score",
             "Distribution matching and the effect of guidance, each at its own times",
             "Liu et al. 2025, Decoupled DMD, arXiv:2511.22677"),
        _row("tdm", "tdm.TDM", "tdm.TDMConfig",
             14.0, "captions", "student fake_score",
             "Distribution matching along the student's own path of few steps",
             "Luo et al. 2025, Learning Few-Step Diffusion Models by Trajectory Distribution Matching, "
             "arXiv:2503.06674"),
        _row("diff-instruct", "diff_instruct.DiffInstruct", "diff_instruct.DiffInstructConfig",
             10.0, "captions", "student fake_score",
             "The plain difference of the scores, also known as variational score distillation",
             "Luo et al. 2023, Diff-Instruct, arXiv:2305.18455"),
        _row("dde", "dde.DDE", "dde.DDEConfig",
             10.0, "captions", "student fake_score",
             "Denoisers of data and of samples at one noise level",
             "Bigdeli et al. 2020, Learning Generative Models using Denoising Density Estimators, arXiv:2001.02728"),
        # adversarial
        _row("ladd", "ladd.LADD", "ladd.LADDConfig",
             9.0, "images", "student discriminator",
             "Latent adversarial diffusion distillation",
             "Sauer et al. 2024, Latent Adversarial Diffusion Distillation, arXiv:2403.12015"),
        _row("add", "add.ADD", "add.ADDConfig",
             14.0, "images", "student discriminator",
             "Adversarial diffusion distillation, judged in pixels",
             "Sauer et al. 2023, Adversarial Diffusion Distillation, arXiv:2311.17042"),
        _row("sana-sprint", "sana_sprint.SanaSprint", "sana_sprint.SanaSprintConfig",
             17.0, "images", "student weight discriminator",
             "sCM and LADD on one student",
             "Chen et al. 2025, SANA-Sprint, arXiv:2503.09641"),
        # flow maps
        _row("meanflow", "meanflow.MeanFlow", "meanflow.MeanFlowConfig",
             7.0, "images", "student",
             "MeanFlow: the average velocity over an interval, distilled or trained",
             "Geng et al. 2025, Mean Flows for One-step Generative Modeling, arXiv:2505.13447"),
        _row("imf", "imf.IMF", "imf.IMFConfig",
             9.0, "images", "student",
             "Improved mean flows: regression on a velocity, with guidance as an input",
             "Geng et al. 2025, Improved Mean Flows, arXiv:2512.02012"),
        _row("shortcut", "shortcut.Shortcut", "shortcut.ShortcutConfig",
             6.0, "images", "student target",
             "Shortcut models: the student knows how far it jumps",
             "Frans et al. 2024, One Step Diffusion via Shortcut Models, arXiv:2410.12557"),
        _row("rcgm", "rcgm.RCGM", "rcgm.RCGMConfig",
             10.0, "images", "student target",
             "Flow map by recursive consistency, without derivatives",
             "Sun & Lin 2025, Any-step Generation via N-th Order Recursive Consistent Velocity Field Estimation"),
        _row("twinflow", "twinflow.TwinFlow", "twinflow.TwinFlowConfig",
             9.0, "images", "student target",
             "Flow map that is its own fake score at negative times",
             "Cheng et al. 2026, TwinFlow, arXiv:2512.05150"),
        _row("progressive", "progressive.Progressive", "progressive.ProgressiveConfig",
             7.0, "images", "student before",
             "Progressive distillation: one step for two, halved again and again",
             "Salimans & Ho 2022, Progressive Distillation for Fast Sampling of Diffusion Models, arXiv:2202.00512"),
        _row("reflow", "reflow.ReFlow", "reflow.ReFlowConfig",
             35.0, "captions", "student",
             "Rectified flow on pairs of noise and the end of its ODE",
             "Liu et al. 2022, Flow Straight and Fast, arXiv:2209.03003"),
        _row("freeflow", "freeflow.FreeFlow", "freeflow.FreeFlowConfig",
             14.0, "captions", "student fake_score",
             "Flow map from noise alone, corrected by a fake score",
             "Tong et al. 2025, Flow Map Distillation Without Data, arXiv:2511.19428"),
    )
)  # fmt: skip


# no method of the list: it makes a teacher, by `ddx prepare`
_PREPARATION = _row("preparation", "parts.preparation.Preparation", "parts.preparation_config.PreparationConfig",
                    4.0, "images", "student",
                    "A teacher tuned for continuous-time distillation",
                    "Chen et al. 2025, SANA-Sprint, arXiv:2503.09641")[1]  # fmt: skip


def method_spec(name: str) -> MethodSpec:
    """Return the spec of method `name`; UsageError with the nearest name otherwise."""
    if name in METHODS:
        return METHODS[name]
    near = nearest(name, tuple(METHODS))
    hint = f"did you mean `--method {near}`?" if near else "see `ddx list methods`; known: " + ", ".join(METHODS)
    raise UsageError(f"unknown method {name!r}", hint=hint)


def trainable_spec(name: str) -> MethodSpec:
    """Return the spec of what a trainer can run: a method, or the preparation of a teacher."""
    return _PREPARATION if name == _PREPARATION.name else method_spec(name)


def load_method(
    name: str, config: Any, teacher: Teacher, discriminator: AddedDiscriminatorConfig | None = None
) -> Method:
    """Return method `name` for `teacher`, with a discriminator beside it if `discriminator` gives it a weight, and with
    the reward that `config` may name.

    `config` is an instance of its config class.
    """
    plain = trainable_spec(name).method(config, teacher)
    method: Method = plain
    if discriminator is not None and discriminator.gan_weight != 0.0:
        from ddx.methods.parts.added_discriminator import WithDiscriminator

        method = WithDiscriminator(plain, discriminator)
    if getattr(config, "reward", None) is not None:
        from ddx.methods.parts.reward import WithReward

        method = WithReward(method)
    return method
