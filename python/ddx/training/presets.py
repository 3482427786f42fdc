"""Settings tuned for one teacher and method: YAML files in the package, applied under everything the user gives.

Where several methods share a preset, its key `methods` maps a method to what it has for itself.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ddx.config import Settings, read_yaml
from ddx.errors import UsageError, nearest


def preset_folder() -> Path:
    """Return the folder of the presets inside the installed package."""
    return Path(str(resources.files("ddx"))) / "presets" / "distill"


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets, such as `sana-tiny-lcm` and `sana-tiny-lcm-full`."""
    return tuple(sorted(path.stem for path in preset_folder().glob("*.yaml")))


def preset_for(teacher: str, method: str, preset: str = "auto") -> tuple[str | None, Settings]:
    """Return the preset's name and settings.

    "auto" is `<teacher>-<method>` where there is one, else `<teacher>` where there is that; "none" is none; `full` may
    stand for `<teacher>-<method>-full`.
    Raises UsageError for a name that does not exist.
    """
    names, base = preset_names(), f"{teacher}-{method}"
    usual = next((name for name in (base, teacher) if name in names), None)
    if preset == "none" or (preset == "auto" and usual is None):
        return None, Settings({}, "no preset")
    wanted = str(usual) if preset == "auto" else preset
    for name in (wanted, f"{base}-{wanted}"):
        if name in names:
            shared = read_yaml(preset_folder() / f"{name}.yaml")
            own = shared.pop("methods", {}).get(method, {})
            return name, Settings({**shared, **own}, f"preset {name}")
    near = nearest(preset, (*names, "auto", "none"))
    hint = f"did you mean `--preset {near}`?" if near else "one of: auto, none, " + ", ".join(names)
    raise UsageError(f"unknown preset {preset!r}", hint=hint)
