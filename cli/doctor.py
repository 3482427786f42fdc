"""`ddx doctor`: whether this machine can do the work, and what to do where it cannot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddx.cli.finding import Finding
from ddx.cli.invocation import Invocation
from ddx.cli.options import config_options

if TYPE_CHECKING:
    from ddx.workspace import Workspace

GIB = 1024**3
LOW_DISK_GIB = 10.0


@click.command(
    epilog="""\b
Example:
  ddx doctor
  torchrun --nproc-per-node 8 -m ddx doctor --cluster
"""
)
@click.option("--cluster", is_flag=True, help="Check the machines of a run under torchrun, instead of this one.")
@config_options(dry_run=False)
def command(invocation: Invocation, cluster: bool) -> int:
    """Check this machine: versions, devices, kernels, caches, disk."""
    from ddx.cli.console import emit, emit_json

    invocation.loading("torch")
    findings: list[Finding] | None
    if cluster:
        from ddx.cli.doctor_cluster import examine_cluster

        findings = examine_cluster(invocation.workspace.root.absolute())
        if findings is None:  # one of several processes: the first one tells
            return 0
    else:
        findings = examine(invocation.workspace)
    if invocation.as_json:
        emit_json({"ok": all(f.ok for f in findings), "findings": [asdict(f) for f in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = click.style("ok ", fg="green") if finding.ok else click.style("!! ", fg="red", bold=True)
            emit(f"{mark} {finding.name.ljust(width)}  {finding.value}")
            if not finding.ok and finding.cure:
                emit(f"    {' ' * width}  hint: {finding.cure}")
    return 0 if all(finding.ok for finding in findings) else 1


def examine(workspace: Workspace) -> list[Finding]:
    """Look at everything; a check that itself fails becomes a finding."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("versions", _versions),
        ("Rust core", _core),
        ("devices", _devices),
        ("kernels", _kernels),
        ("memory", _memory),
        ("Hugging Face cache", _hub_cache),
        ("workspace", lambda: _workspace(workspace)),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:  # whatever breaks here is what doctor is asked to show
            findings.append(Finding(name, False, f"{type(error).__name__}: {error}", "install ddx again: make install"))
    return findings


def _versions() -> list[Finding]:
    from ddx.run_record import RECORDED_PACKAGES, versions

    found = versions()
    missing = [package for package in RECORDED_PACKAGES if package not in found]
    findings = [Finding(name, True, version) for name, version in found.items()]
    return findings + [Finding(name, False, "not installed", f"pip install {name}") for name in missing]


def _core() -> list[Finding]:
    import importlib.util

    import ddx.data.store  # noqa: F401  (only ddx.data may import the extension module; this loads it)

    spec = importlib.util.find_spec("ddx._core")
    return [Finding("Rust core", True, str(spec.origin if spec else "built in"))]


def _devices() -> list[Finding]:
    import torch

    findings = [Finding("processor", True, f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"sm_{properties.major}{properties.minor}"
        size = f"{properties.total_memory / GIB:.0f} GiB"
        findings.append(Finding(f"cuda:{index}", True, f"{properties.name}, {size}, {capability}"))
    if not torch.cuda.is_available():
        findings.append(Finding("cuda", True, "none: everything runs on the processor, sana-tiny comfortably"))
    return findings


def _kernels() -> list[Finding]:
    from ddx.kernels.dispatch import describe

    return [
        Finding(f"kernels, {key}", not value.startswith("error"), value, "unset DDX_KERNELS")
        for key, value in describe().items()
    ]


def _memory() -> list[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return [Finding("memory", total >= 4, f"{total:.0f} GiB", "sana-tiny needs 4 GiB; close other programs")]


def _hub_cache() -> list[Finding]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    offline = " (offline: HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
    models = sorted(path.name for path in cache.glob("models--*")) if cache.is_dir() else []
    return [Finding("Hugging Face cache", True, f"{cache}, {len(models)} models{offline}")]


def _workspace(workspace: Workspace) -> list[Finding]:
    existing = workspace.root.absolute()
    while not existing.exists():
        existing = existing.parent
    writable = os.access(existing, os.W_OK)
    free = shutil.disk_usage(existing).free / GIB
    return [
        Finding("workspace", writable, str(workspace.root.absolute()), "choose another with --workspace DIR"),
        Finding("free disk space", free >= LOW_DISK_GIB, f"{free:.0f} GiB", "free some, or use another --workspace"),
    ]
