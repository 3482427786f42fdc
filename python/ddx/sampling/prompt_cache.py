"""What encoders made of a prompt, kept: in memory for the other pictures of a run, on the disk for the next one.

With it the encoders run before all pictures and stay away from the device then. A file is known by the encoders'
fingerprint, the arguments of the call, the dtypes, the kind of device and the versions of the libraries: what it holds
is what the encoders would give, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddx.run_record import versions


class PromptCache:
    """Stands before the `encode_prompt` of a pipeline."""

    def __init__(
        self, pipeline: Any, device: torch.device, *, fingerprint: str = "", folder: Path | None = None
    ) -> None:
        """fingerprint: of the encoders' weights. folder: where files are kept (None: in memory alone)."""
        self._pipeline, self._encode = pipeline, pipeline.encode_prompt
        self._signature = inspect.signature(self._encode)
        self.device, self.folder = device, folder
        known = {name: value for name, value in versions().items() if name in ("torch", "diffusers", "transformers")}
        dtypes = {
            part: str(m.dtype) for part, m in pipeline.components.items() if part.startswith("text_encoder") and m
        }
        self._facts = [fingerprint, type(pipeline).__name__, dtypes, device.type, known]
        self._found: dict[str, Any] = {}
        self.runs = 0  # of the encoders
        pipeline.encode_prompt = self._call

    def read(self, call: Callable[[], Any]) -> None:
        """Make a call of the pipeline, as far as its encoders: noise comes after all of its texts."""
        pipeline = self._pipeline
        pipeline.prepare_latents = _stop
        try:
            with contextlib.suppress(_TextIsRead):
                call()
        finally:
            del pipeline.prepare_latents

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        key = self._key(self._signature.bind(*args, **kwargs).arguments)
        found = None if key is None else self._get(key)
        if found is None:
            self.runs += 1
            found = self._encode(*args, **kwargs)
            if key is not None:
                self._put(key, found)
        return _moved(found, self.device)

    def _key(self, arguments: dict[str, Any]) -> str | None:
        """Return the name of a call, None for one that is given tensors."""
        arguments = {name: value for name, value in arguments.items() if name != "device"}
        try:
            text = json.dumps([*self._facts, arguments], sort_keys=True)
        except TypeError:
            return None
        return hashlib.sha256(text.encode()).hexdigest()

    def _get(self, key: str) -> Any:
        if key not in self._found and self.folder is not None:
            from safetensors import SafetensorError, safe_open

            with (
                contextlib.suppress(OSError, SafetensorError, ValueError, KeyError, TypeError),
                safe_open(self._path(key), framework="pt") as file,
            ):
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                self._found[key] = _joined(json.loads(file.metadata()["form"]), tensors)
        return self._found.get(key)

    def _put(self, key: str, value: Any) -> None:
        self._found[key] = value = _moved(value, torch.device("cpu"))
        if self.folder is None:
            return
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        form = json.dumps(_form(value, tensors))
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a full disk costs the next run some seconds, and this one nothing
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, metadata={"form": form})
            os.replace(temporary, path)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"


class _TextIsRead(Exception):
    pass


def _stop(*_: Any, **__: Any) -> None:
    raise _TextIsRead


def _form(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return nested tuples and lists as JSON, with a name in the place of each tensor, which goes into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.contiguous().clone()
        return name
    if isinstance(value, tuple | list):
        return [type(value).__name__, [_form(item, tensors) for item in value]]
    return None


def _joined(form: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(form, str):
        return tensors[form]
    if isinstance(form, list):
        items = [_joined(item, tensors) for item in form[1]]
        return tuple(items) if form[0] == "tuple" else items
    return None


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    return value
