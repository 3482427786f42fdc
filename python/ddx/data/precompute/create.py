"""Making a store's metadata, or opening the one that is there if it was made for the same bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ddx._core import StoreWriter
from ddx.data.core import core_errors
from ddx.data.float8 import MAX_ERROR, float8_error, to_float8
from ddx.data.layout import Array, array_specs, scale_attribute, whole_spec
from ddx.data.precompute.append import SECONDS_BETWEEN_LOOKS, make_room
from ddx.data.precompute.encode import Captions, Text, as_text, needed_scale, pack
from ddx.data.precompute.part_writer import raw
from ddx.data.precompute.plan import Plan, with_text
from ddx.data.ranks import CREATE, claim
from ddx.data.segments import read_attributes
from ddx.errors import DdxError, UsageError

if TYPE_CHECKING:
    from ddx.teachers.condition import Condition


def open_writer(plan: Plan) -> tuple[Plan, StoreWriter]:
    """The store's writer. Whichever rank comes first creates what is missing; rank 0 lets a store grow.

    Raises UsageError naming the setting in which an existing store differs; nothing is ever deleted.
    """
    found = read_attributes(plan.store)
    if found is None and plan.store.is_file():
        raise UsageError(f"{plan.store} is a file", hint="give the folder of a store with --out")
    while found is None and not plan.config.append:
        # Any rank may be the first: of a job array, the task with number 0 may start last, or never.
        with claim(plan.store, CREATE) as mine:
            found = read_attributes(plan.store)
            if found is None and mine:
                return _create(plan)
        if found is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    found, plan = make_room(plan)
    with core_errors():
        text_scale = float(found.get("text_scale", 1.0))
        return with_text(plan, found["pooled_width"], text_scale), StoreWriter.open(plan.store, plan.digest)


def whole_arrays(plan: Plan, text_scale: float | None = None) -> tuple[Plan, dict[str, Any]]:
    """The arrays of one shard: the null condition and the validation prompts, encoded; and the plan that knows them.

    `text_scale` None is chosen by these texts.
    """
    teacher = plan.teacher
    conditions = [teacher.null_condition(), *teacher.encode_text(list(teacher.validation_prompts))]
    text_scale = needed_scale(conditions) if text_scale is None else text_scale
    null, *texts = (_text(plan, condition, text_scale) for condition in conditions)
    arrays = {
        "text/null": null.tokens,
        **_validation_arrays(pack(texts)),
    }
    if null.pooled is not None:
        arrays["text/null_pooled"] = null.pooled[None]
    return with_text(plan, None if null.pooled is None else len(null.pooled), text_scale), arrays


def _create(plan: Plan) -> tuple[Plan, StoreWriter]:
    plan, arrays = whole_arrays(plan)
    specs = array_specs(plan.sizes)
    for path, array in arrays.items():
        names = ("token", "channel") if array.ndim == 2 else ("prompt",)
        factor = scale_attribute(plan.sizes) if names[0] == "token" else None
        specs.append(whole_spec(path, array.shape, str(array.dtype), names, factor))
    attributes = {
        **plan.attributes(),
        "pooled_width": plan.sizes.pooled_width,
        **scale_attribute(plan.sizes),
        "validation_prompts": list(plan.teacher.validation_prompts),
    }
    if plan.sizes.float8:
        attributes["text_error"] = _float8_errors(plan, arrays)
    # A store exists when its root does, so what has no parts goes in first.
    with core_errors():
        writer = StoreWriter.create(
            plan.store,
            json.dumps(specs),
            json.dumps({"ddx": attributes}),
            plan.digest,
            {path: raw(array) for path, array in arrays.items()},
        )
    return plan, writer


def _text(plan: Plan, condition: Condition, text_scale: float) -> Text:
    text = as_text(condition.to("cpu"), text_scale)
    if isinstance(text, str):
        raise DdxError(
            f"the text encoder of {plan.teacher.name} gives {text} values in {plan.settings['dtype']}",
            hint="try --dtype float32",
        )
    return text


def _float8_errors(plan: Plan, arrays: Mapping[str, Array]) -> dict[str, float]:
    """One minus the cosine between embeddings and what eight bits keep of them: of each caption's worst token."""
    captions = [arrays["text/null"]]
    if "text/validation/tokens" in arrays:
        tokens, *places = (arrays[f"text/validation/{name}"] for name in ("tokens", "offset", "length"))
        captions += [tokens[offset : offset + length] for offset, length in zip(*places, strict=True)]
    errors = [float8_error(caption, *to_float8(caption)) for caption in captions]
    if plan.sizes.text_scale != 1.0:  # beside them the other channels would vanish, which no cosine shows
        raise UsageError(
            f"the embeddings of {plan.teacher.name} have channels that are too large for float8",
            hint="leave --text-dtype away",
        )
    if max(errors) > MAX_ERROR:
        raise UsageError(
            f"the embeddings of {plan.teacher.name} lose too much in float8: an error of {max(errors):.2%}",
            hint="leave --text-dtype away",
        )
    return {"mean": float(np.mean(errors)), "largest": max(errors)}


def _validation_arrays(validation: Captions) -> dict[str, Any]:
    if not len(validation.length):
        return {}
    arrays = {"tokens": validation.tokens, "offset": validation.offset, "length": validation.length}
    if validation.pooled is not None:
        arrays["pooled"] = validation.pooled
    return {f"text/validation/{name}": array for name, array in arrays.items()}
