"""Which preset a teacher and a method have: YAML files in the package, applied under everything the user gives."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ddx.config import Settings
from ddx.errors import UsageError, nearest
from ddx.methods.registry import METHODS
from ddx.teachers.families.table import FAMILIES
from ddx.teachers.family_of import family_of, name_of, origin_of
from ddx.teachers.registry import TEACHERS
from ddx.training.preset_file import Preset, read_preset


def preset_folder() -> Path:
    """Return the folder of the presets inside the installed package."""
    return Path(str(resources.files("ddx"))) / "presets" / "distill"


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets, such as `sana-tiny-lcm` and `sana-tiny-lcm-full`."""
    return tuple(sorted(path.stem for path in preset_folder().glob("*.yaml")))


def preset_parts(name: str) -> tuple[str, str, str]:
    """Return a preset's teacher or family, its method ("" where several share it), and its ending, such as `lora`."""
    subjects = sorted({*TEACHERS, *(family.name for family in FAMILIES)}, key=len, reverse=True)
    for subject in subjects:
        if name == subject:
            return subject, "", ""
        rest = name.removeprefix(f"{subject}-")
        for method in sorted(METHODS, key=len, reverse=True):
            if rest != name and (rest == method or rest.startswith(f"{method}-")):
                return subject, method, rest.removeprefix(method).removeprefix("-")
    raise ValueError(f"{name} is no <teacher or family>-<method>")


def published_for(method: str) -> tuple[str, ...]:
    """Return the families, or teachers, that a method has a published recipe for: a preset that cites works."""
    names = [name for name in preset_names() if preset_parts(name)[1] == method]
    presets = [read_preset(preset_folder() / f"{name}.yaml", method) for name in names]
    return tuple(dict.fromkeys(preset_parts(str(preset.name))[0] for preset in presets if preset.works))


def no_preset() -> Preset:
    """Return the preset of those who want none."""
    return Preset(name=None, settings=Settings({}, "no preset"))


def preset_for(teacher: str, method: str, preset: str = "auto") -> Preset:
    """Return the preset for a teacher and a method.

    "auto" is the first that exists of `<teacher>-<method>`, `<teacher>` and `<family>-<method>`; "none" is none.
    Another text is a preset's name, or its ending behind `<teacher>-<method>-` or `<family>-<method>-`: `full`, `lora`.
    A prepared teacher has the presets of the one that it was made of, and a hub id those of the teacher's name.
    Raises UsageError for a name that does not exist.
    """
    names = preset_names()
    if preset == "none":
        return no_preset()
    if preset in names:
        return read_preset(preset_folder() / f"{preset}.yaml", method)
    known = name_of(origin_of(teacher))
    family = family_of(teacher)
    bases = [f"{known}-{method}", *([f"{family}-{method}"] if family else [])]
    wanted = [bases[0], known, *bases[1:]] if preset == "auto" else [f"{base}-{preset}" for base in bases]
    found = next((name for name in wanted if name in names), None)
    if found is not None:
        return read_preset(preset_folder() / f"{found}.yaml", method)
    if preset == "auto":
        return no_preset()
    near = nearest(preset, (*names, "auto", "none"))
    hint = f"did you mean `--preset {near}`?" if near else "one of: auto, none, " + ", ".join(names)
    raise UsageError(f"unknown preset {preset!r}", hint=hint)
