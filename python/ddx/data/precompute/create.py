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
from ddx.data.layout import Array, array_specs, whole_spec
from ddx.data.precompute.append import SECONDS_BETWEEN_LOOKS, make_room
from ddx.data.precompute.encode import Captions, Text, as_text, pack
from ddx.data.precompute.part_writer import raw
from ddx.data.precompute.plan import Plan, with_pooled
from ddx.data.segments import read_attributes
from ddx.errors import DdxError, UsageError

if TYPE_CHECKING:
    from ddx.teachers.condition import Condition


def open_writer(plan: Plan) -> tuple[Plan, StoreWriter]:
    """The store's writer. The first rank creates what is missing or lets it grow, the others wait for it.

    Raises UsageError naming the setting in which an existing store differs; nothing is ever deleted.
    """
    found = read_attributes(plan.store)
    while found is None and not plan.rank.is_first and not plan.config.append:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        found = read_attributes(plan.store)
    if found is None and not plan.config.append:
        if plan.store.is_file():
            raise UsageError(f"{plan.store} is a file", hint="give the folder of a store with --out")
        return _create(plan)
    found, plan = make_room(plan)
    with core_errors():
        return with_pooled(plan, found["pooled_width"]), StoreWriter.open(plan.store, plan.digest)


def whole_arrays(plan: Plan) -> tuple[Plan, dict[str, Any]]:
    """The arrays of one shard: the null condition and the validation prompts, encoded; and the plan that knows them."""
    teacher = plan.teacher
    prompts = list(teacher.validation_prompts)
    null, *texts = (_text(plan, condition) for condition in (teacher.null_condition(), *teacher.encode_text(prompts)))
    arrays = {
        "text/null": null.tokens,
        **_validation_arrays(pack(texts)),
    }
    if null.pooled is not None:
        arrays["text/null_pooled"] = null.pooled[None]
    return with_pooled(plan, None if null.pooled is None else len(null.pooled)), arrays


def _create(plan: Plan) -> tuple[Plan, StoreWriter]:
    plan, arrays = whole_arrays(plan)
    specs = array_specs(plan.sizes)
    for path, array in arrays.items():
        names = ("token", "channel") if array.ndim == 2 else ("prompt",)
        specs.append(whole_spec(path, array.shape, str(array.dtype), names))
    attributes = {
        **plan.attributes(),
        "pooled_width": plan.sizes.pooled_width,
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


def _text(plan: Plan, condition: Condition) -> Text:
    text = as_text(condition.to("cpu"))
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
