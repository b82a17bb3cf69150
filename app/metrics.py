"""The metrics of one service, in base units, in a registry of its own.

Labels are route templates, model names that exist and kinds of problems from a fixed table, so that nothing a client
sends can add a time series.

Where several workers are one service, any of them can tell the metrics of all. Counters and histograms then lie in
mapped files, one set a slot; they outlive a killed worker, and the next one in its slot counts on, so that sums never
fall. Gauges of work in progress are sums over the workers that live. What models take is asked of each worker. Memory
and CPU seconds are those of all processes, shared pages counted once and dead workers' seconds kept.
"""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue

from app.about import program_version
from app.errors import Problem
from app.processes import process_metrics
from app.repository import Repository, State, Version

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, *_REQUEST_BUCKETS)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that no one asked for


@dataclass(frozen=True)
class ModelFacts:
    """What metrics say of one version of a model in one worker; sizes are empty or 0 while it is not loaded."""

    name: str
    version: int
    ready: bool
    isa: str = ""
    bytes_by_kind: dict[str, int] = field(default_factory=dict)
    resident_bytes: int = 0
    arena_bytes: int = 0


class Metrics:
    """Counters, histograms and gauges that the service moves.

    `folder` and `slot` say where they lie if they are those of one worker of several, as `app.workers` describes them.
    """

    def __init__(self, folder: Path | None = None, slot: int = 0) -> None:
        self._folder = folder
        if folder is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
            values.ValueClass = MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "signet_requests_total",
            "Requests answered, by route template, model and HTTP status.",
            ["route", "model", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "signet_request_seconds",
            "Time from the request's headers to the end of the answer.",
            ["route"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "signet_stage_seconds",
            "Time of one stage of an image's way: decode, preprocess, queue, infer, postprocess.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.images = Counter("signet_images_total", "Images answered.", ["model"], registry=self.registry)
        self.batch_images = Histogram(
            "signet_batch_images",
            "Images handed to the engine in one run.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.rejected = Counter(
            "signet_rejected_total", "Requests not answered as asked, by reason.", ["reason"], registry=self.registry
        )
        self.in_flight = Gauge(
            "signet_in_flight", "Requests in progress.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.queue_images = Gauge(
            "signet_queue_images",
            "Images admitted and not yet answered.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def refuse(self, problem: Problem) -> None:
        """Count what was refused before it became a request."""
        self.requests.labels("unmatched", "", str(problem.status)).inc()
        self.rejected.labels(problem.slug).inc()

    def render(self, models: Sequence[Sequence[ModelFacts]], pids: Sequence[int]) -> bytes:
        """The exposition text of all metrics, from the facts of each worker's models and the workers' process ids."""
        registry, supervisor = self.registry, None
        if self._folder is not None:
            registry, supervisor = CollectorRegistry(), os.getppid()
            MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
        asked = _Collected([*model_metrics(models), *process_metrics(pids, supervisor)])
        return generate_latest(registry) + generate_latest(asked)


class _Collected(CollectorRegistry):
    """Metrics that are there already, as a registry."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def facts_of(repository: Repository) -> list[ModelFacts]:
    """The facts of every version as they are now."""
    return [_facts(version) for version in repository]


def _facts(version: Version) -> ModelFacts:
    name, number, session = version.name, version.version, version.session
    if session is None:
        return ModelFacts(name, number, ready=False)
    sizes = session.file.header.sizes
    return ModelFacts(
        name,
        number,
        ready=version.state is State.READY,
        isa=session.isa,
        bytes_by_kind={"packed": sizes.packed_bytes, "float32_equivalent": sizes.float32_bytes},
        resident_bytes=session.resident_bytes,
        arena_bytes=session.arena_bytes,
    )


def model_metrics(workers: Sequence[Sequence[ModelFacts]]) -> list[Metric]:
    """Sizes and states of the models: loaded where every worker has them, resident in all workers together."""
    loaded = GaugeMetricFamily(
        "signet_model_loaded", "1 while this version of the model answers.", labels=["model", "version"]
    )
    sizes = GaugeMetricFamily(
        "signet_model_bytes",
        "Weights as packed, as the same network in float32, and as resident in memory.",
        labels=["model", "version", "kind"],
    )
    arena = GaugeMetricFamily(
        "signet_arena_bytes", "Working memory of one run of the model.", labels=["model", "version"]
    )
    by_version: dict[tuple[str, int], list[ModelFacts]] = defaultdict(list)
    for facts in chain.from_iterable(workers):
        by_version[facts.name, facts.version].append(facts)
    for (name, number), told in sorted(by_version.items()):
        labels = [name, str(number)]
        loaded.add_metric(labels, float(len(told) == len(workers) and all(facts.ready for facts in told)))
        for kind, size in next((facts.bytes_by_kind for facts in told if facts.bytes_by_kind), {}).items():
            sizes.add_metric([*labels, kind], size)
        if any(facts.ready for facts in told):
            sizes.add_metric([*labels, "resident"], sum(facts.resident_bytes for facts in told))
            arena.add_metric(labels, max(facts.arena_bytes for facts in told))
    build = GaugeMetricFamily(
        "signet_build_info", "1; its labels describe the program.", labels=["version", "isa", "python"]
    )
    instruction_sets = {facts.isa for facts in chain.from_iterable(workers) if facts.isa}
    build.add_metric([program_version(), ",".join(sorted(instruction_sets)) or "none", platform.python_version()], 1.0)
    workers_up = GaugeMetricFamily("signet_workers", "Worker processes that answer.", value=len(workers))
    return [loaded, sizes, arena, build, workers_up]
