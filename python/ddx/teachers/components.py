"""Loading one component of a pipeline folder: safetensors only, known classes only, when it is needed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddx.errors import DdxError, UsageError
from ddx.teachers.hub import TEXT_SUFFIXES, Source, read_json, variant_of, weight_files

_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
}


def parse_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """A torch dtype from its name; None is float32 on a CPU and bfloat16 on an accelerator."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(dtype, torch.dtype):
        if dtype not in _DTYPES.values():
            raise UsageError(f"networks run in float32, bfloat16 or float16, not {dtype}")
        return dtype
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", hint="one of float32, bfloat16, float16")
    return _DTYPES[dtype]


def component_class(source: Source, part: str, expected: tuple[str, ...]) -> Any:
    """The class that ``model_index.json`` names for a part, if the family knows it."""
    entry = source.index.get(part)
    if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
        raise DdxError(f"the pipeline in {source.folder} has no {part}")
    library, name = entry
    if library not in ("diffusers", "transformers") or name not in expected:
        raise DdxError(
            f"{part} of {source.name} is {library}.{name}; ddx supports {', '.join(expected)}",
            hint="see `ddx list teachers` for the families",
        )
    if library == "diffusers":
        import diffusers

        return getattr(diffusers, name)
    import transformers

    # what transformers 5 calls a tokenizer without a class of its own; the older name exists in every version
    return getattr(transformers, "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name)


def refuse_unknown_parts(source: Source, known: tuple[str, ...], left_out: tuple[str, ...]) -> None:
    """Raise DdxError for a part of the pipeline that ddx would leave out, and that may change pictures."""
    unknown = [part for part in source.parts if part not in (*known, *left_out, "scheduler")]
    if unknown:
        raise DdxError(
            f"{source.name} has parts that ddx does not know: {', '.join(unknown)}",
            hint=f"of a {source.pipeline} it knows {', '.join(known)}",
        )


def load_model(
    source: Source, part: str, expected: tuple[str, ...], *, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A network of the pipeline, frozen and in evaluation mode."""
    loader = component_class(source, part, expected)
    folder = source.folder / part
    if not weights_are_wanted():
        return network_of_config(loader, folder, dtype)
    files = weight_files(folder)
    if not files:
        raise DdxError(
            f"{folder} has no safetensors weights",
            hint="pickled weights are never loaded; convert the pipeline with save_pretrained(safe_serialization=True)",
        )
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    if (variant := variant_of(files[0])) is not None:
        options["variant"] = variant
    options[_dtype_argument(loader)] = dtype
    try:
        with no_progress_bars():
            model: nn.Module = loader.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise DdxError(f"cannot load {part} from {folder}: {error}") from error
    return model.to(device).eval().requires_grad_(False)


_WITHOUT_WEIGHTS: ContextVar[bool] = ContextVar("without weights", default=False)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Within, networks are made from their configs alone, and no file of weights is asked for."""
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


def weights_are_wanted() -> bool:
    """Whether networks are to be loaded with their weights: not within :func:`without_weights`."""
    return not _WITHOUT_WEIGHTS.get()


def network_of_config(loader: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A network of the shape that the config in a folder says, frozen and in evaluation mode; its weights are new."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made so at once: a cast of fake parameters is what their weak references forbid
    try:
        if loader.__module__.startswith("diffusers"):
            model: nn.Module = loader.from_config(read_json(folder / "config.json"))
        else:
            model = loader(loader.config_class.from_dict({**read_json(folder / "config.json"), "dtype": dtype}))
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def _dtype_argument(loader: Any) -> str:
    """Older diffusers know ``torch_dtype`` only; newer ones warn about it."""
    import diffusers

    old = tuple(int(part) for part in diffusers.__version__.split(".")[:2]) < (0, 42)
    return "torch_dtype" if old and loader.__module__.startswith("diffusers") else "dtype"


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Both libraries draw a bar for each file they read; ours are the only ones on a user's terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def load_tokenizer(source: Source, part: str, expected: tuple[str, ...]) -> Any:
    """A tokenizer of the pipeline, from its files alone."""
    loader = component_class(source, part, expected)
    folder = source.folder / part
    _check_vocabulary(folder, part)
    try:
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DdxError(f"cannot load {part} from {folder}: {error}") from error


def _check_vocabulary(folder: Path, part: str) -> None:
    """Raise DdxError for a tokenizer that would open with a vocabulary of special tokens alone, or not at all."""
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return
    if not any(folder.glob("*.model")):
        raise DdxError(f"{part} has no vocabulary: no tokenizer.json, vocab.json or SentencePiece model in {folder}")
    if missing := [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]:
        raise DdxError(
            f"{part} is a SentencePiece model, which transformers reads with {' and '.join(missing)}",
            hint="pip install sentencepiece protobuf",
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def component_config(source: Source, part: str) -> dict[str, Any]:
    """A component's ``config.json`` without the keys that do not shape what it computes."""
    config = read_json(source.folder / part / "config.json")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _NO_SHAPE}


_NO_SHAPE = {"transformers_version", "torch_dtype", "dtype", "architectures", "use_cache"}


def content_hash(source: Source, parts: tuple[str, ...]) -> str:
    """SHA-256 over the weights and the tokenizer files of some components, for pipelines without a commit."""
    digest = hashlib.sha256()
    for part in parts:
        folder = source.folder / part
        files = weight_files(folder) or sorted(p for p in folder.glob("*") if p.suffix in TEXT_SUFFIXES)
        for file in files:
            digest.update(f"{part}/{file.name}\n".encode())
            digest.update(_file_hash(file))
    return digest.hexdigest()


def _file_hash(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def parameter_dtype(network: nn.Module) -> torch.dtype:
    """The dtype of a network's floating parameters (the first one's), through any wrapper."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32
