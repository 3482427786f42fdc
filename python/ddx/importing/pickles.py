"""Pickles read as data: tensors, numbers and containers come out; what would run code becomes an inert record.

torch's own restricted reader (`weights_only=True`) refuses files that hold whole modules, such as the snapshots of SiD
and its relatives. Here an unknown class is a :class:`Record`, which keeps the state that it is given and does nothing
else, so that the parameters inside can be found.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddx.errors import DdxError, UsageError


class Record:
    """Stands for an object of a class that is not known: its arguments and its state, as they were stored."""

    arguments: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> Record:
        """Keep the arguments; a pickle may make an object without calling its __init__."""
        record = super().__new__(cls)
        record.arguments, record.state = arguments, dict(named)
        return record

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Do nothing with them."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = {**(state[0] or {}), **state[1]}  # of a class with slots
        self.state = state if isinstance(state, dict) else {"state": state}

    def append(self, value: Any) -> None:
        """An item of an unknown kind of list."""
        self.state.setdefault("items", []).append(value)

    def extend(self, values: Any) -> None:
        """Items of an unknown kind of list."""
        for value in values:
            self.append(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)


def _parameter(data: Tensor, requires_grad: bool = False, hooks: Any = None, *more: Any) -> Tensor:
    return data


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
    found: Tensor = torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))
    return found


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *ignored: {},
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes of the older protocols
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("builtins", "bytearray"): bytearray,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): lambda *ignored: None,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}
_DTYPES = {
    name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The few things that tensors are made of; anything else becomes a record."""
        module = "builtins" if module == "__builtin__" else module  # of the older protocols
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        return _DTYPES.get(name, Record) if module == "torch" else Record

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_pickle(path: Path) -> Any:
    """Return what a pickle or a file of `torch.save` holds, without running anything of it.

    Raises DdxError for a file that is none, and UsageError for one that cannot be read as data.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":  # of torch.save
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            file.seek(0)
            return _Reader(file).load()
    except (pickle.UnpicklingError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise UsageError(
            f"{path} cannot be read as data: {error}",
            hint="ask its authors for safetensors, or save its state_dict() with safetensors.torch.save_file",
        ) from error
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise DdxError(f"cannot read {path}: {error}", hint="is the download complete?") from error


def _state(record: Record) -> dict[str, Any]:
    """Its state; that of NVIDIA's persistent classes is in what they are made from."""
    made_from = record.arguments[0] if record.arguments else None
    inner = made_from.state if isinstance(made_from, Record) else made_from
    if not record.state.get("_modules") and isinstance(inner, dict) and isinstance(inner.get("state"), dict):
        state: dict[str, Any] = inner["state"]
        return state
    return record.state


def tensors_of(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors inside modules, mappings and lists, by the names that `state_dict()` gives them."""
    if isinstance(value, Tensor):
        return {prefix: value}
    if isinstance(value, Record):
        state = _state(value)
        inside = {name: state.get(name) or {} for name in ("_parameters", "_buffers", "_modules")}
        hidden = state.get("_non_persistent_buffers_set") or ()
        if not any(inside.values()):
            return {}
        members = {**inside["_parameters"], **inside["_buffers"], **inside["_modules"]}
        members = {name: member for name, member in members.items() if name not in hidden}
    elif isinstance(value, dict):
        members = {str(name): member for name, member in value.items()}
    elif isinstance(value, list | tuple):
        members = {str(number): member for number, member in enumerate(value)}
    else:
        return {}
    found: dict[str, Tensor] = {}
    for name, member in members.items():
        found |= tensors_of(member, f"{prefix}.{name}" if prefix else str(name))
    return found
