"""Networks that are spread over ranks train as whole ones do: real processes, gloo, a processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import distill_runs as runs
import sharded_memory
import sharded_ranks
from ddx.errors import UsageError
from ddx.methods.parts.added_discriminator import AddedDiscriminatorConfig
from ddx.methods.registry import METHODS, load_method, trainable_spec
from ddx.teachers.base import Teacher
from ddx.teachers.registry import load_teacher
from ddx.training.config import DistillConfig
from ddx.training.distributed import Ranks
from ddx.training.shard_choice import choose_sharding, fitting
from ddx.training.sharding import make_sharding
from pipelines import make_sana
from scorers import make_scorer
from tiny import NAMES, Tiny
from torchrun import torchrun
from two_ranks import OWN

JUDGE = {"gan_weight": 0.1, "heads": "attention", "gan_loss": "relativistic", "r1_weight": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("spread") / "tiny", layers=2, width=16)


def job(teacher: Path, method: str, *, kind: str = "full", **case: Any) -> dict[str, Any]:
    """A step of a method; CAME makes whole steps of the rounding that is the gradient of a key's bias."""
    more = case.pop("more", {})
    if trainable_spec(method).method.defaults.get("optimizer") == "came":
        more = {"optimizer": "radam", **more}
    own = {"method": method, "settings": OWN.get(method, {}), **case}
    return {"case": own, "kind": kind, "teacher": str(teacher), "more": more}


def gaps(tmp_path: Path, num: int, jobs: list[dict[str, Any]], **environment: str) -> dict[str, float]:
    """Return how far each network's update by `num` ranks is from that of one."""
    out = tmp_path / "out"
    out.mkdir()
    torchrun(num, sharded_ranks.__file__, str(out), json.dumps(jobs), **environment)
    found = {k: v for rank in range(num) for k, v in json.loads((out / f"{rank}.json").read_text()).items()}
    assert found.keys() == {str(number) for number in range(len(jobs))}
    return {
        f"{jobs[int(number)]['case']} {jobs[int(number)]['kind']} {name}": gap
        for number, by_name in found.items()
        for name, gap in by_name.items()
    }


def far(found: dict[str, float], limit: float) -> dict[str, float]:
    return {name: gap for name, gap in found.items() if not gap <= limit}


def test_two_ranks_with_shares_of_the_networks_train_as_one_with_all_of_them(folder: Path, tmp_path: Path) -> None:
    """A target, two networks in one backward pass, features with two gradients that meet, and dual forwards; low-rank
    matrices around a shared base, a discriminator and checkpointed blocks."""
    jobs = [
        job(folder, "lcm", more={"gradient_checkpointing": True}),
        job(folder, "sid"),
        job(folder, "dmd2", balance="project"),
        job(folder, "scm"),
        job(folder, "meanflow"),
        job(folder, "lcm", discriminator=JUDGE, balance="norm", lora_rank=4),
    ]
    assert far(gaps(tmp_path, 2, jobs), 1e-5) == {}


@pytest.mark.cluster
@pytest.mark.slow  # a minute
def test_shares_go_with_activations_on_the_host_a_reward_and_averages_in_half_precision(
    folder: Path, tmp_path: Path
) -> None:
    """An average in bfloat16 is rounded at random: by other numbers for a share than for the whole."""
    scorer = str(make_scorer(tmp_path / "scorer"))
    on_host = {"offload": ["activations"], "gradient_checkpointing": True}
    reward = {"reward": scorer, "reward_weight": 3.0, "num_steps": 1}
    jobs = [
        job(folder, "lcm", more=on_host),
        job(folder, "sid", more={**on_host, "checkpointed_share": 0.5}),
        job(folder, "sid", settings=reward),
        job(folder, "dmd2", settings={**reward, "reward_share": 0.5}, balance="norm"),
        job(folder, "ladd", settings={"reward": scorer}, lora_rank=4),
        job(folder, "lcm", more={"average_dtype": "bf16", "ema_half_life": 10.0, "ema_more": ["decay:0.5"]}),
    ]
    found = gaps(tmp_path, 2, jobs)
    averages = {name: gap for name, gap in found.items() if " average ema" in name}
    assert far({name: gap for name, gap in found.items() if name not in averages}, 1e-5) == {}
    assert len(averages) == 2 and far(averages, 2.0**-7) == {}
    assert all(averages.values())


@pytest.mark.cluster
@pytest.mark.slow  # minutes: five times four processes
def test_four_ranks_train_as_one_also_on_two_machines_and_in_half_precision(folder: Path, tmp_path: Path) -> None:
    """Machines are of two ranks; half precision is compared with its own rounding."""
    jobs = [job(folder, name, kind=kind) for kind in ("full", "hybrid") for name in ("lcm", "dmd2", "meanflow")]
    jobs = [{**each, "repeats": 2} for each in jobs]  # micro-batches, whose gradients meet over machines once
    out = tmp_path / "exact"
    out.mkdir()
    assert far(gaps(out, 4, jobs, MACHINE="2"), 1e-5) == {}
    out = tmp_path / "half"
    out.mkdir()
    half = [{**job(folder, name, more={"dtype": "bf16"}), "teacher_dtype": "bfloat16"} for name in ("lcm", "sid")]
    assert far(gaps(out, 2, half), 0.02) == {}


@pytest.mark.cluster
@pytest.mark.slow  # a minute
@pytest.mark.parametrize(("num", "method"), [(2, "lcm"), (4, "sid")])
def test_a_rank_holds_its_share_of_the_states(tmp_path: Path, num: int, method: str) -> None:
    """At the peak, a gathered block and what is around the blocks included: 1/N and 15 % of what one would hold."""
    teacher = make_sana(tmp_path / "deep", layers=12, width=32)
    torchrun(num, sharded_memory.__file__, str(teacher), str(tmp_path), method)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(num)]
    alone = found[0][1]
    assert max(shared for shared, _ in found) <= (1.0 / num + 0.15) * alone, (found, alone)


@pytest.mark.cluster
@pytest.mark.slow  # minutes
def test_every_family_trains_in_shares_as_whole(tmp_path: Path) -> None:
    """By one method, and those that give a derivative through their own forward pass by one that takes it."""
    teachers = {name: Tiny(name).make(tmp_path / name) for name in NAMES}
    jobs = [job(teacher, "lcm") for teacher in teachers.values()]
    jobs += [job(teachers[name], "scm") for name in ("stable-diffusion-3", "z-image")]
    assert far(gaps(tmp_path, 2, [{**each, "resolution": 64} for each in jobs]), 1e-5) == {}


@pytest.mark.cluster
@pytest.mark.slow  # minutes
def test_every_method_trains_in_shares_as_whole(folder: Path, tmp_path: Path) -> None:
    jobs = [job(folder, name) for name in (*METHODS, "preparation")]
    jobs += [job(folder, name, lora_rank=4) for name in METHODS]
    jobs += [
        job(folder, name, discriminator={"gan_weight": 0.1}, balance="norm")
        for name, spec in METHODS.items()
        if spec.takes_discriminator
    ]
    assert far(gaps(tmp_path, 2, jobs), 1e-5) == {}


def test_a_run_in_shares_draws_looks_and_exports_as_a_whole_one(
    teacher_folder: Path, store: Path, tmp_path: Path
) -> None:
    settings = {"micro_batch_size": 1, "sample_every": 4, "sample_prompts": 1, "watch_every": 4, "watch_prompts": 1}
    settings |= {"watch_seeds": 2, "keep_best": "distance", "ema_more": "decay:0.5"}
    lines = runs.flags(teacher_folder, store, tmp_path / "together", **settings, shard="full")
    torchrun(2, "-m", "ddx", *lines)
    (together,) = (tmp_path / "together" / "students").iterdir()
    alone = runs.run(teacher_folder, store, tmp_path / "alone", **{**settings, "ema_more": ("decay:0.5",)})
    files = [
        {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "checkpoints" not in path.parts}
        for root in (together, alone)
    ]
    assert files[0] == files[1]
    for name in ("loss", "grad_norm", "ode_distance"):
        ours, theirs = ([line[name] for line in runs.lines(root) if name in line] for root in (together, alone))
        assert ours == pytest.approx(theirs, rel=1e-3), name
    for path in sorted(alone.rglob("diffusion_pytorch_model.safetensors")):
        expected, found = load_file(path), load_file(together / path.relative_to(alone))
        for name, value in expected.items():
            assert (found[name] - value).norm() <= 1e-3 * value.norm() + 1e-5, (path, name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shard": "full", "lora_rank": 4, "base_bits": 8}, "base_bits = 8"),
        ({"shard": "hybrid", "offload": ("moments",)}, "offload = moments"),
        ({"shard": "full", "optimizer": "adamw8bit"}, "adamw8bit"),
        ({"shard": "full", "dtype": "fp16"}, "dtype = fp16"),
    ],
)
def test_what_does_not_go_with_shares_is_refused(folder: Path, settings: dict[str, Any], words: str) -> None:
    teacher, config = load_teacher(folder, device="cpu"), DistillConfig(**settings)
    method = load_method("lcm", trainable_spec("lcm").config(), teacher)
    with pytest.raises(UsageError, match=words) as caught:
        choose_sharding(config, method, None, teacher, Ranks(0, 2))
    assert "--shard none" in str(caught.value.hint)
    assert choose_sharding(config, method, None, teacher, Ranks()).kind == "none"  # one process holds everything


def test_machines_must_have_equally_many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="3 processes are not a multiple of the 2"):
        make_sharding("hybrid", Ranks(0, 3))


def test_an_exact_gradient_penalty_is_refused_with_shares(folder: Path) -> None:
    teacher = load_teacher(folder, device="cpu")
    exact = AddedDiscriminatorConfig(gan_weight=0.1, r1_weight=1.0, r1_form="exact")
    method = load_method("lcm", trainable_spec("lcm").config(), teacher, exact)
    with pytest.raises(UsageError, match="r1_form = exact"):
        choose_sharding(DistillConfig(shard="full"), method, exact, teacher, Ranks(0, 2))


@pytest.mark.parametrize(
    ("needed", "num_ranks", "on_machine", "kind"),
    [
        (40.0, 64, 8, "none"),
        (41.0, 8, 8, "full"),
        (41.0, 64, 8, "hybrid"),
        (320.0, 64, 8, "hybrid"),
        (321.0, 64, 8, "full"),  # one machine does not hold it
        (41.0, 12, 8, "full"),  # machines with other numbers of ranks have no equal shares
        (41.0, 4, 1, "full"),
    ],
)
def test_auto_sends_as_little_as_the_memory_lets_it(needed: float, num_ranks: int, on_machine: int, kind: str) -> None:
    assert fitting(needed, 80.0, num_ranks, on_machine) == kind


def test_auto_keeps_networks_whole_on_a_processor(folder: Path) -> None:
    teacher: Teacher = load_teacher(folder, device="cpu")
    method = load_method("lcm", trainable_spec("lcm").config(), teacher)
    choice = choose_sharding(DistillConfig(), method, None, teacher, Ranks(0, 8))
    assert (choice.kind, choice.why) == ("none", "the run is not on GPUs")
