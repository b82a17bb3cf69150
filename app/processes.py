"""CPU and memory of the service's processes, as Linux tells them under /proc; elsewhere there is nothing to tell.

One process has the metrics that every Prometheus client gives. Of a supervisor and its workers they are sums: memory is
the proportional set size, which counts a page that several processes share once, and CPU seconds include those of
workers that are gone, so that the counter never falls.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

_SUMMED = ("process_virtual_memory_bytes", "process_open_fds")
_RESIDENT, _CPU, _START = "process_resident_memory_bytes", "process_cpu_seconds", "process_start_time_seconds"


def process_metrics(pids: Sequence[int], supervisor: int | None = None) -> list[Metric]:
    """The metrics of this process; with a `supervisor`, those of it and of its workers `pids` together."""
    own = list(ProcessCollector(registry=None).collect())
    if supervisor is None:
        return own
    everyone = [supervisor, *pids]
    of_each = [_values(pid) for pid in everyone]
    for metric in own:
        found = [values[metric.name] for values in of_each if metric.name in values]
        if metric.name in _SUMMED:
            _set(metric, sum(found))
        elif metric.name == _RESIDENT:
            _set(metric, sum(_pss_bytes(pid) for pid in everyone))
        elif metric.name == _CPU:
            _set(metric, sum(found) + _reaped_cpu_s(supervisor))
        elif metric.name == _START:
            _set(metric, min(found))
    return own


def _values(pid: int) -> dict[str, float]:
    collector = ProcessCollector(pid=lambda: pid, registry=None)
    return {metric.name: metric.samples[0].value for metric in collector.collect()}


def _set(metric: Metric, value: float) -> None:
    metric.samples = [metric.samples[0]._replace(value=value)]


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:  # it has ended in this moment
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _reaped_cpu_s(pid: int) -> float:
    """CPU seconds of the children that a process has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
