"""A step of SANA-Sprint (sCM and an adversarial loss): `ddx distill` from a store, beside diffusers' own script.

The script is not ours to copy: give it by its path, `examples/research_projects/sana/train_sana_sprint_diffusers.py` in
the repository of diffusers. Both start from one folder with random weights, read one parquet file of photographs, and
take the same batch at the same resolution with gradient checkpointing; both are clocked by the same hook, which sees
every optimiser step in the process, and report the peak of torch's allocator (on a processor: of the process). One step
of ours is an update of the discriminator and one of the student; the script alternates, so two of its steps count as
one. The store is made once, outside of the clock: that is the point of it, and its time stands in the result.

    python benchmarks/sprint.py --peer /path/to/train_sana_sprint_diffusers.py
    python benchmarks/sprint.py --peer … --tiny         # the same wiring on the bundled teacher, on a processor too
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))

from _environment import RESULTS, machine, write_result
from _photographs import write_photographs

CLOCK = Path(__file__).resolve().parent / "_step_clock.py"
WARMUP = 3  # steps of each that do not count


def main() -> None:
    """Make what both need, run both, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="diffusers' script; without it ddx alone is timed")
    parser.add_argument("--tiny", action="store_true", help="the bundled teacher instead of SANA-600M")
    parser.add_argument("--batch-size", type=int, default=16, help="images a step")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: 512, tiny: 64)")
    parser.add_argument("--steps", type=int, default=13, help=f"steps, of which the first {WARMUP} do not count")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    arguments = parser.parse_args()
    environment, rows = machine(), {}
    resolution = arguments.resolution or (64 if arguments.tiny else 512)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        teacher = _teacher(folder, tiny=arguments.tiny)
        write_photographs(
            folder / "photographs.parquet", copies=arguments.batch_size, caption_columns=("caption", "llava")
        )
        precompute = _ddx(
            ["precompute", "photographs.parquet", "--teacher", str(teacher), "--resolution", str(resolution)], folder
        )
        rows["ddx"] = _clocked(
            [
                *("-m", "ddx.cli.main", "distill", "--method", "sana-sprint", "--teacher", str(teacher)),
                *("--resolution", str(resolution), "--batch-size", str(arguments.batch_size)),
                *("--set", "micro_batch_size=none", "--train-steps", str(arguments.steps), "--gradient-checkpointing"),
                *("--sample-every", "0", "--checkpoint-every", "0", "--preset", "none", "--quiet"),
            ],
            folder,
        )
        if arguments.peer:
            rows["diffusers"] = _clocked(_peer(arguments, teacher, folder, resolution), folder)
    result: dict[str, Any] = {
        "teacher": "sana-tiny" if arguments.tiny else "SANA-600M, random weights",
        "resolution": resolution,
        "batch_size": arguments.batch_size,
        "precompute_seconds": precompute,
        "rows": rows,
    }
    if len(rows) == 2:
        result["steps_per_second_ratio"] = round(rows["diffusers"]["seconds"] / rows["ddx"]["seconds"], 2)
        result["peak_memory_ratio"] = round(rows["ddx"]["peak_bytes"] / rows["diffusers"]["peak_bytes"], 2)
    print(json.dumps(result, indent=2))
    print(write_result("sprint-tiny" if arguments.tiny else "sprint", result, environment, arguments.out))


def _teacher(folder: Path, *, tiny: bool) -> Path:
    """The teacher as a folder of its own, whose transformer the script reads as one file."""
    import shutil

    if tiny:
        from ddx.teachers.registry import bundled_folder

        return Path(shutil.copytree(bundled_folder("sana-tiny"), folder / "teacher"))
    from pipelines import make_sana_600m

    return make_sana_600m(folder / "teacher")


def _peer(arguments: argparse.Namespace, teacher: Path, folder: Path, resolution: int) -> list[str]:
    return [
        str(arguments.peer.resolve()),
        f"--pretrained_model_name_or_path={teacher}",
        f"--output_dir={folder / 'peer'}",
        "--mixed_precision=bf16",  # the script mixes its dtypes up without
        f"--resolution={resolution}",
        f"--max_train_steps={2 * arguments.steps}",
        "--dataloader_num_workers=4",
        "--dataset_name=parquet",
        "--file_path",
        str(folder / "photographs.parquet"),
        f"--train_batch_size={arguments.batch_size}",
        "--checkpointing_steps=1000000",
        "--num_train_epochs=1000",
        "--seed=0",
        "--train_largest_timestep",
        "--misaligned_pairs_D",
        "--gradient_checkpointing",
    ]


def _ddx(arguments: list[str], folder: Path) -> float:
    import time

    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "ddx.cli.main", *arguments, "--quiet"], cwd=folder, check=True)
    return round(time.monotonic() - began, 1)


def _clocked(command: list[str], folder: Path) -> dict[str, Any]:
    """Median seconds of a pair of optimiser steps, discriminator and student, and the peak of memory."""
    ticks = folder / "ticks.json"
    environment = {**os.environ, "DDX_WORKSPACE": str(folder / "runs"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(CLOCK), str(ticks), *command], cwd=folder, env=environment, check=False)
    found = json.loads(ticks.read_text()) if ticks.is_file() else {"seconds": []}
    times = found["seconds"][::2]
    if len(times) < WARMUP + 2:
        raise SystemExit(
            f"{' '.join(command[:3])} … took {len(found['seconds'])} optimiser steps and ended with {done.returncode}"
        )
    steps = [after - before for before, after in zip(times[WARMUP:], times[WARMUP + 1 :], strict=False)]
    return {"seconds": statistics.median(steps), "steps": len(steps), "peak_bytes": found["peak_bytes"]}


if __name__ == "__main__":
    main()
