"""What every benchmark prints first: the machine and the versions that a figure belongs to."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path


def describe(*packages: str) -> dict[str, str]:
    """CPU model, CPUs granted, Python, and the versions of those packages that are installed."""
    from models.xnor.cpu import default_threads

    found = {"cpu": _cpu_model(), "cpus": str(default_threads()), "python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(tuple(part.strip() for part in line.split(":", 1)) for line in reversed(lines) if ":" in line)
    name = fields.get("model name", platform.machine())
    family = ", ".join(f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields)
    return f"{name} ({family})" if family else name
