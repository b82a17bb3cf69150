"""What each version of a model has answered so far: the statistics of the Open Inference Protocol V2.

All routes count, whatever their protocol. Touched only on the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.trace import Trace

_STAGES = {"queue": ("queue",), "compute_input": ("decode", "preprocess"), "compute_infer": ("infer",)}
_OUTCOMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Duration:
    """How often something happened, and the time it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.ns += round(seconds * 1e9)


Durations = dict[str, Duration]


def _add(durations: Durations, name: str, seconds: float) -> None:
    durations.setdefault(name, Duration()).add(seconds)


@dataclass
class ModelStatistics:
    """The account of one version of one model.

    Attributes
    ----------
    last_inference_ms : milliseconds since 1970 of the last request; 0 before the first.
    images : pictures answered.
    durations : requests by outcome, and the stages of those that succeeded.
    batches : runs of the network by number of pictures, with the same stages.
    """

    last_inference_ms: int = 0
    images: int = 0
    durations: Durations = field(default_factory=dict)
    batches: dict[int, Durations] = field(default_factory=dict)

    @contextmanager
    def request(self, trace: Trace) -> Iterator[None]:
        """Count the request that the block serves, as failed if it raises."""
        begun = time.monotonic()
        self.last_inference_ms = time.time_ns() // 1_000_000
        try:
            yield
        except BaseException:
            _add(self.durations, "fail", time.monotonic() - begun)
            raise
        _add(self.durations, "success", time.monotonic() - begun)
        self._add_stages(self.durations, trace.stages)
        _add(self.durations, "compute_output", trace.stages.get("postprocess", 0.0))

    def ran(self, images: int, run_images: int, trace: Trace) -> None:
        """Count a request's pictures, and the run over `run_images` that they shared; 0 where another counts it."""
        self.images += images
        if run_images:
            self._add_stages(self.batches.setdefault(run_images, {}), trace.stages)

    @staticmethod
    def _add_stages(durations: Durations, stages: Mapping[str, float]) -> None:
        for name, parts in _STAGES.items():
            _add(durations, name, sum(stages.get(part, 0.0) for part in parts))

    @property
    def runs(self) -> int:
        """Runs of the network, each over a batch."""
        return sum(entry["compute_infer"].count for entry in self.batches.values())

    def outcomes(self) -> dict[str, Duration]:
        """Every duration of requests, those that never happened included."""
        return {name: self.durations.get(name, Duration()) for name in _OUTCOMES}

    def add(self, other: ModelStatistics) -> None:
        """Count what another account has counted."""
        self.last_inference_ms = max(self.last_inference_ms, other.last_inference_ms)
        self.images += other.images
        _add_durations(self.durations, other.durations)
        for size, durations in other.batches.items():
            _add_durations(self.batches.setdefault(size, {}), durations)


def _add_durations(whole: Durations, more: Durations) -> None:
    for name, duration in more.items():
        entry = whole.setdefault(name, Duration())
        entry.count += duration.count
        entry.ns += duration.ns


@dataclass(frozen=True)
class ModelAccount:
    """The account of a version, with its name."""

    name: str
    version: int
    statistics: ModelStatistics


class Statistics:
    """The accounts of all versions."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, int], ModelStatistics] = {}

    def of(self, name: str, version: int) -> ModelStatistics:
        """The account of a version that exists."""
        return self._models.setdefault((name, version), ModelStatistics())

    def accounts(self) -> list[ModelAccount]:
        """Every account that was opened."""
        return [ModelAccount(name, version, account) for (name, version), account in self._models.items()]


def total(accounts: Iterable[ModelAccount]) -> Statistics:
    """Accounts of several workers as one."""
    whole = Statistics()
    for account in accounts:
        whole.of(account.name, account.version).add(account.statistics)
    return whole
