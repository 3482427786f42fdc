"""From a hub id or a folder to a local folder with a diffusers pipeline: safetensors only, never code.

What is cached is used without asking the network, so that a run repeats offline. Nothing here loads weights.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddx.errors import DdxError, UsageError
from ddx.run_record import FILE_NAME as RECORD
from ddx.teachers.families.table import STUDENT_PIPELINES, find_family, no_adapter
from ddx.teachers.published_students import refuse_student_folder
from ddx.teachers.unknown import alias_of

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

log = logging.getLogger("ddx.teachers")

# Of a pipeline's parts: no single-file checkpoints, no pickles, no Python. A chat template is a .jinja.
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")
IGNORE_PATTERNS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "safety_checker/*", "image_encoder/*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pipeline on this disk and where it came from."""

    folder: Path
    name: str
    origin: str  # the hub id, or the folder's path
    revision: str  # the commit, or "local"
    licence: str

    @property
    def index(self) -> dict[str, Any]:
        """The content of ``model_index.json``."""
        return read_json(self.folder / "model_index.json")

    @property
    def pipeline(self) -> str:
        """The class of the pipeline."""
        return str(self.index.get("_class_name"))

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that ``model_index.json`` names."""
        return _named_parts(self.index)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a DdxError names the file when it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DdxError(f"{path} does not exist", hint="is this a complete diffusers pipeline?") from None
    except (OSError, ValueError) as error:
        raise DdxError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise DdxError(f"{path} holds no JSON object")
    return content


def local_source(folder: Path, *, name: str | None = None, licence: str | None = None) -> Source:
    """A pipeline in a folder; UsageError when the folder holds none."""
    if not (folder / "model_index.json").is_file():
        raise UsageError(
            f"{folder} is not a diffusers pipeline: it has no model_index.json",
            hint="give the folder that DiffusionPipeline.save_pretrained wrote, or a name from `ddx list teachers`",
        )
    resolved = folder.resolve()
    return Source(
        folder=resolved,
        name=name or resolved.name,
        origin=str(resolved) if name is None else name,
        revision="local" if name is None else "bundled",
        licence=licence or _card_licence(resolved),
    )


def hub_source(
    repo: str, revision: str, *, name: str | None = None, licence: str | None = None, students: bool = False
) -> Source:
    """A pipeline of the Hugging Face hub: from the cache when it is there, else downloaded.

    A cache that knows the repository only under another commit of ``main`` is accepted with a log line. When the
    weights are neither cached nor reachable, one DdxError names the download command. `students`: whether the pipeline
    may be one of a published student.
    """
    folder = _cached(repo, revision)
    if folder is None and revision != "main":
        folder = _cached(repo, "main")
        if folder is not None:
            log.warning("%s is cached at %s, not at the pinned %s; using it", repo, folder.name[:12], revision[:12])
    if folder is None:
        folder = _download(repo, revision, students=students)
    elif not students:
        refuse_student_folder(folder, repo)
    return Source(
        folder=folder,
        name=name or repo.rsplit("/", 1)[-1].lower(),
        origin=repo,
        revision=folder.name,
        licence=licence or _card_licence(folder),
    )


def is_cached(repo: str, revision: str) -> bool:
    """Return whether the cache has all of a repository's weights, at this commit or at the newest that it knows."""
    return any(_cached(repo, name) is not None for name in dict.fromkeys((revision, "main")))


def pipeline_class(repo: str) -> str | None:
    """Return the class in a repository's `model_index.json`, from the cache or the hub; None if neither has it."""
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache

    try:
        path = try_to_load_from_cache(repo, "model_index.json")
        if not isinstance(path, str):
            if constants.HF_HUB_OFFLINE:
                return None
            HfApi().model_info(repo, timeout=10)  # says at once, without retries, that nobody answers
            path = hf_hub_download(repo, "model_index.json")
        return str(read_json(Path(path)).get("_class_name"))
    except Exception as error:  # no route, a gate, no such repository: opening the teacher says which
        log.debug("the class of %s is not known: %s", repo, error)
        return None


def _cached(repo: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is not a hub id: {error}", hint="see `ddx list teachers`") from error
    missing = missing_parts(folder)
    if missing:
        log.warning("the cached %s lacks %s", repo, ", ".join(missing))
        return None
    return folder


def _download(repo: str, revision: str, *, students: bool) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    command = f"hf download {repo}" + ("" if revision == "main" else f" --revision {revision}")
    cure = f"run `{command}` where there is a network, or try `--teacher sana-tiny`, which needs no download"
    if constants.HF_HUB_OFFLINE:
        raise DdxError(f"the weights of {repo} are not cached, and HF_HUB_OFFLINE is set", hint=cure)
    log.info("downloading %s", repo)
    try:
        info = HfApi().model_info(
            repo, revision=revision, timeout=10
        )  # says at once, without retries, that nobody answers
        _refuse_other_pipelines(repo, info, students=students)
        if not students and RECORD in _names(info):
            refuse_student_folder(Path(hf_hub_download(repo, RECORD, revision=revision)).parent, repo)
        index = read_json(Path(hf_hub_download(repo, "model_index.json", revision=revision)))
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=_patterns(index),
                ignore_patterns=list(IGNORE_PATTERNS),
            )
        )
    except GatedRepoError as error:
        raise DdxError(
            f"{repo} wants its licence accepted first",
            hint=f"accept it on https://huggingface.co/{repo}, then `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise DdxError(
            f"the hub has no public repository {repo}, and there is no folder of that name",
            hint=_other_name(repo),
        ) from error
    except RevisionNotFoundError as error:
        raise DdxError(f"{repo} has no revision {revision}", hint=f"`hf download {repo}` fetches its newest") from error
    except UsageError:
        raise
    except Exception as error:  # no route, a proxy, TLS, a full disk: each transport raises its own
        reached = isinstance(error, HfHubHTTPError) or (isinstance(error, OSError) and not _is_connection(error))
        problem = f"could not be downloaded: {error}" if reached else "are not cached, and the hub is not reachable"
        raise DdxError(f"the weights of {repo} {problem}", hint=cure) from error
    missing = missing_parts(folder)
    if missing:
        raise DdxError(
            f"{repo} has no safetensors weights for {', '.join(missing)}",
            hint="pickled weights are never loaded; convert the pipeline with save_pretrained(safe_serialization=True)",
        )
    return folder


def _refuse_other_pipelines(repo: str, info: ModelInfo, *, students: bool) -> None:
    """Raise UsageError, before anything is downloaded, for a repository that no adapter could open."""
    names = _names(info)
    if names and "model_index.json" not in names:
        raise UsageError(
            f"{repo} is not a diffusers pipeline: it has no model_index.json",
            hint=_other_name(repo),
        )
    found = ((info.config or {}).get("diffusers") or {}).get("_class_name")
    if found is not None and find_family(found) is None and not (students and found in STUDENT_PIPELINES):
        raise no_adapter(repo, found)


def _names(info: ModelInfo) -> list[str]:
    return [file.rfilename for file in info.siblings or ()]


def _other_name(repo: str) -> str:
    alias = alias_of(repo)
    return f"did you mean --teacher {alias}?" if alias else "see `ddx list teachers`"


def _patterns(index: dict[str, Any]) -> list[str]:
    """The files of the parts that an index names; some repositories hold other things beside them."""
    kinds = (*TEXT_SUFFIXES, ".safetensors")
    return [
        "model_index.json",
        "README.md",
        RECORD,
        *(f"{part}/*{kind}" for part in _named_parts(index) for kind in kinds),
    ]


def _is_connection(error: OSError) -> bool:
    """Whether an error came before any answer; huggingface_hub's own offline errors are of this kind too."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return isinstance(error, ConnectionError | TimeoutError | LocalEntryNotFoundError | OfflineModeIsEnabled)


def missing_parts(folder: Path) -> list[str]:
    """The components of a pipeline folder that cannot be loaded from it."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    parts = _named_parts(read_json(folder / "model_index.json"))
    return [part for part in parts if part.startswith(_WEIGHTY) and not weight_files(folder / part)]


_WEIGHTY = ("transformer", "unet", "vae", "text_encoder")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a component, sorted; those of a variant (fp16, bf16) only when there are no others."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if variant_of(file) is None and "non_ema" not in file.name]
    return plain or files


def variant_of(file: Path) -> str | None:
    """The variant in a file's name: ``model.fp16.safetensors`` and ``model.fp16-00001-of-2.safetensors`` give fp16."""
    pieces = file.name.split(".")
    return pieces[1].split("-")[0] if len(pieces) > 2 else None


def _named_parts(index: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        part for part, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    )


def _card_licence(folder: Path) -> str:
    """The ``license:`` line of the model card's front matter."""
    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines[:1] == ["---"]:
            for line in lines[1:]:
                if line == "---":
                    break
                if line.startswith("license:"):
                    return line.partition(":")[2].strip()
    return "unknown"
