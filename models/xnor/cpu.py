"""How many threads this process may use: the least of its CPU affinity and its cgroup's CPU quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_SELF = Path("/proc/self/cgroup")


def default_threads() -> int:
    """Threads that can run at once, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = cgroup_cpus()
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def cgroup_cpus(root: Path = CGROUP_ROOT, of_self: Path = CGROUP_OF_SELF) -> float | None:
    """CPUs that the cgroups (version 1 or 2) around this process grant; None where there is no limit."""
    quotas: list[float] = []
    for folder in _folders(root, of_self):
        for read in (_quota_v2, _quota_v1):
            quota = read(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _folders(root: Path, of_self: Path) -> list[Path]:
    """The process's cgroup folders and all above them: a limit on any of them holds."""
    try:
        lines = of_self.read_text().splitlines()
    except OSError:
        lines = []
    found: list[Path] = [root, root / "cpu", root / "cpu,cpuacct"]
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        parts = Path(path.lstrip("/")).parts
        found += [base.joinpath(*parts[:n]) for n in range(1, len(parts) + 1) if ".." not in parts]
    return found


def _quota_v2(folder: Path) -> float | None:
    numbers = _numbers(folder / "cpu.max")
    return numbers[0] / numbers[1] if len(numbers) == 2 and min(numbers) > 0 else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
    return quota[0] / period[0] if quota and period and quota[0] > 0 and period[0] > 0 else None


def _numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):  # absent, or "max"
        return []
