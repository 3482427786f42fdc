"""`ddx evaluate --reference`: pictures of students, of a teacher or of a folder, beside real ones, a row each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddx.config import to_dict
from ddx.device import find_device
from ddx.errors import DdxError, UsageError
from ddx.evaluation.config import EvaluateConfig
from ddx.evaluation.drawn import DrawnFolder
from ddx.evaluation.extraction import extract
from ddx.evaluation.measure_config import MeasureConfig
from ddx.evaluation.measures import (
    MEASURES,
    Compared,
    check_reference,
    measure_all,
    networks_of,
    with_extrapolation,
)
from ddx.evaluation.network_loading import load_networks
from ddx.evaluation.octaves import Octaves, octaves_of_files, octaves_of_reference
from ddx.evaluation.picture_files import of_files, of_folder, open_pictures, read_picture
from ddx.evaluation.prompt_lists import read_prompt_list
from ddx.evaluation.protocols import PROTOCOLS
from ddx.evaluation.real_drawing import draw_rows
from ddx.evaluation.real_facts import notes_of, paired_rows, protocol_of
from ddx.evaluation.real_rows import RealResult, Row, Variant
from ddx.evaluation.reference import Reference, load_statistics, save_statistics
from ddx.progress import NullProgress, Progress
from ddx.run_record import versions
from ddx.workspace import Workspace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ddx.networks.lpips import Lpips
    from ddx.networks.picture_networks import PictureNetwork


def evaluate_real(
    variants: Sequence[Variant],
    measure: MeasureConfig,
    students: Sequence[Path] = (),
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> RealResult:
    """Draw what is to be scored, compare it with the reference, and write the report.

    variants: one, or several that differ in a setting; students: more than the one of the config. Raises UsageError and
    DdxError for what cannot be opened; of several rows one that cannot be drawn has an error in its place.
    """
    import torch

    from ddx.evaluation.real_report import write_real_report
    from ddx.networks.lpips import load_lpips

    workspace, progress = workspace or Workspace(), progress or NullProgress()
    config = variants[0].config
    device = find_device(config.device)
    prompts = _prompts(config, measure)
    saved = _saved_statistics(measure)
    if saved is not None:
        check_reference(measure.names, saved)
    # on the host first: what is missing is said before hours of drawing, which may want all of the device
    networks = load_networks(networks_of(measure.names), measure, torch.device("cpu"))
    lpips = load_lpips(torch.device("cpu")) if "lpips" in measure.names else None
    if measure.pictures is not None:
        rows = [_folder_row(measure.pictures)]
    else:
        rows = draw_rows(variants, measure, students, prompts, workspace, progress)
    if all(row.error for row in rows):
        raise DdxError(f"no row could be drawn: {rows[0].error}", hint="see the errors above")
    for network in networks.values():
        network.move(device)
    if lpips is not None:
        lpips.move(device)
    names = with_extrapolation(measure.names, min(row.count or config.num_images for row in rows))
    reference = _reference(config, measure, saved, networks, workspace, progress)
    for row in rows:
        if row.error is None:
            _score(row, names, reference, networks, lpips, measure, config, prompts, workspace, progress)
    facts = {
        "protocol": protocol_of(config, measure, prompts, reference, networks, rows),
        "paired": paired_rows(rows),
        "config": {**to_dict(config), **to_dict(measure)},
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    name = rows[0].model if len({row.model for row in rows}) == 1 else "comparison"
    out = config.out or workspace.report_path(f"{name}-real")
    result = RealResult(
        rows=rows,
        facts=facts,
        names=names,
        notes=notes_of(rows, names, reference, measure),
        octaves=_octave_reference(rows, measure),
    )
    return write_real_report(out, result, config.page_prompts)


def _prompts(config: EvaluateConfig, measure: MeasureConfig) -> tuple[str, ...] | None:
    """Return the list of --prompts, checked against the protocol; None where there is none."""
    found = None if config.prompts is None else read_prompt_list(config.prompts)
    if measure.protocol is None or measure.pictures is not None:
        return found
    wanted = PROTOCOLS[measure.protocol]
    if found is None:
        raise UsageError(f"{measure.protocol} needs its prompts: {wanted.prompts}", hint="--prompts FILE")
    if len(found) < config.num_images:
        raise UsageError(
            f"{config.prompts} holds {len(found)} prompts, and {config.num_images} pictures are to be drawn",
            hint=f"--num-images {len(found)}, or the whole list",
        )
    return found


def _folder_row(folder: Path) -> Row:
    pictures = of_folder(folder)
    drawn = DrawnFolder(folder=folder, paths=tuple(pictures.files), seconds_per_image=None, facts={})
    name = folder.resolve().name
    return Row(model=name, kind="pictures", steps=None, guidance=None, changed={}, drawn=drawn, count=len(drawn.paths))


def _saved_statistics(measure: MeasureConfig) -> Reference | None:
    if measure.reference is None or not measure.reference.endswith(".npz"):
        return None
    return load_statistics(Path(measure.reference).expanduser())


def _reference(
    config: EvaluateConfig,
    measure: MeasureConfig,
    saved: Reference | None,
    networks: Mapping[str, PictureNetwork],
    workspace: Workspace,
    progress: Progress,
) -> Reference | None:
    if measure.reference is None:
        return None
    facts = {name: network.facts for name, network in networks.items()}
    if saved is not None:
        reference = saved
        for name, made in reference.facts.get("networks", {}).items():
            if name in facts and made != facts[name]:
                raise UsageError(
                    f"{measure.reference} was made with other weights or resizes of {name}: {made}, not {facts[name]}",
                    hint="make it again with --save-statistics, or give the weights that it was made with",
                )
    else:
        pictures = open_pictures(measure.reference, measure.side)
        found = extract(
            {name: network for name, network in networks.items() if name not in ("clip", "pickscore")},
            pictures,
            side=measure.side,
            batch_size=config.batch_size,
            progress=progress,
            cache=workspace.root / "cache" / "features",
        )
        reference = Reference(name=measure.reference, features=found.features, skipped=found.skipped)
    if measure.save_statistics is not None:
        kept = {"networks": {**reference.facts.get("networks", {}), **facts}, "resize": measure.side}
        path = save_statistics(measure.save_statistics, reference, {**kept, "source": reference.name})
        progress.log(f"statistics: {path}")
    return reference


def _score(
    row: Row,
    names: Sequence[str],
    reference: Reference | None,
    networks: Mapping[str, PictureNetwork],
    lpips: Lpips | None,
    measure: MeasureConfig,
    config: EvaluateConfig,
    prompts: tuple[str, ...] | None,
    workspace: Workspace,
    progress: Progress,
) -> None:
    assert row.drawn is not None
    captions = row.prompts or prompts
    if captions is not None and len(captions) < len(row.drawn.paths) and {"clipscore", "pickscore"} & set(names):
        raise UsageError(
            f"there are {len(row.drawn.paths)} pictures and {len(captions)} captions", hint="--prompts has one a line"
        )
    extracted = extract(
        networks,
        of_files(row.drawn.paths, str(row.drawn.folder)),
        side=measure.side,
        batch_size=config.batch_size,
        progress=progress,
        cache=workspace.root / "cache" / "features",
    )
    seen = Compared(
        drawn=extracted,
        reference=reference,
        captions=captions,
        networks=networks,
        resamples=measure.resamples,
        lpips=None if lpips is None else _pair_distances(lpips, row, config.diversity_seeds),
    )
    row.octaves = octaves_of_files(row.drawn.paths)
    row.count, row.skipped, row.kept = len(extracted), extracted.skipped, extracted.kept
    row.estimates = measure_all(names, seen, progress.log)
    row.values = {name: values(seen) for name in names if (values := MEASURES[name].values) is not None}


def _octave_reference(rows: Sequence[Row], measure: MeasureConfig) -> tuple[str, Octaves] | None:
    """Return what the octaves of the rows are shown beside: real pictures, the teacher at its most steps, or a row."""
    good = [row for row in rows if row.octaves is not None]
    if not good:
        return None
    size = good[0].octaves.size if good[0].octaves else None
    if (real := octaves_of_reference(measure.reference, size)) is not None:
        return str(measure.reference), real
    best = max(good, key=lambda row: (row.kind == "teacher", row.steps or 0 if row.kind == "teacher" else 0))
    assert best.octaves is not None
    return best.title, best.octaves


def _pair_distances(lpips: Lpips, row: Row, seeds: int) -> NDArray[np.float64] | None:
    """Return the mean distance of the pairs of seeds of each prompt; None where none was drawn."""
    paths = row.repeated.paths if row.repeated else ()
    found = []
    for start in range(0, len(paths), seeds):
        pictures = [read_picture(path) for path in paths[start : start + seeds] if path.is_file()]
        pairs = [lpips(one[None], other[None])[0] for one, other in combinations(pictures, 2)]
        if pairs:
            found.append(float(np.mean(pairs)))
    return np.array(found) if found else None
