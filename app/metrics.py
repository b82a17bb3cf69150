"""The metrics of one service, in base units, in a registry of its own.

Labels are route templates, model names that exist and kinds of problems from a fixed table, so that nothing a client
sends can add a time series.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import Problem
from app.repository import Repository, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, *_REQUEST_BUCKETS)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that no one asked for


def program_version() -> str:
    """The installed version, or `unknown` in a bare source tree."""
    try:
        return version("signet")
    except PackageNotFoundError:
        return "unknown"


class Metrics:
    """Counters and histograms that the service moves, and gauges that read its state when scraped."""

    def __init__(self) -> None:
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
        self.in_flight = Gauge("signet_in_flight", "Requests in progress.", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def watch(self, repository: Repository, queued: Callable[[], int]) -> None:
        """Add the gauges that are read from the models and the queue at each scrape."""
        gauge = Gauge("signet_queue_images", "Images admitted and not yet answered.", registry=self.registry)
        gauge.set_function(queued)
        self.registry.register(_ModelCollector(repository))

    def refuse(self, problem: Problem) -> None:
        """Count what was refused before it became a request."""
        self.requests.labels("unmatched", "", str(problem.status)).inc()
        self.rejected.labels(problem.slug).inc()

    def render(self) -> bytes:
        """The exposition text of all metrics."""
        return generate_latest(self.registry)


class _ModelCollector(Collector):
    """Sizes and states of the models as they are at the moment of the scrape."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
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
        instruction_sets = set()
        for entry in self._repository:
            labels = [entry.name, str(entry.version)]
            loaded.add_metric(labels, 1.0 if entry.state is State.READY else 0.0)
            if entry.session is None:
                continue
            stored = entry.session.file.header.sizes
            sizes.add_metric([*labels, "packed"], stored.packed_bytes)
            sizes.add_metric([*labels, "float32_equivalent"], stored.float32_bytes)
            sizes.add_metric([*labels, "resident"], entry.session.resident_bytes)
            arena.add_metric(labels, entry.session.arena_bytes)
            instruction_sets.add(entry.session.isa)
        build = GaugeMetricFamily(
            "signet_build_info", "1; its labels describe the program.", labels=["version", "isa", "python"]
        )
        isa = ",".join(sorted(instruction_sets)) or "none"
        build.add_metric([program_version(), isa, platform.python_version()], 1.0)
        yield from (loaded, sizes, arena, build)
