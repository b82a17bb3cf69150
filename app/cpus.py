"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def available_cpus() -> int:
    """CPUs by affinity and cgroup quota (a container's limit), at least 1; not the host's cores."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def _quota() -> float | None:
    try:
        limit, period = _CGROUP_V2.read_text().split()
    except (OSError, ValueError):
        try:
            limit = (_CGROUP_V1 / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP_V1 / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return float(limit) / float(period) if limit != "max" and float(limit) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None
