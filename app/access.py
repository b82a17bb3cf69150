"""What is left of a request that is over: its line in the log and its place in the metrics, whatever its protocol."""

from __future__ import annotations

import logging

from app.metrics import Metrics
from app.trace import Trace

logger = logging.getLogger("signet.access")


def record(
    metrics: Metrics,
    trace: Trace,
    *,
    method: str,
    route: str,
    status: int,
    client: str | None,
    level: int = logging.INFO,
    **more: object,
) -> None:
    """Count a request and log it; `route` is a template or a name that does not come from the client."""
    seconds = trace.elapsed
    metrics.requests.labels(route, trace.model, str(status)).inc()
    metrics.request_seconds.labels(route).observe(seconds)
    for stage, spent in trace.stages.items():
        metrics.stage_seconds.labels(stage).observe(spent)
    if trace.problem is not None:
        metrics.rejected.labels(trace.problem).inc()
    logger.log(
        level,
        "request",
        extra={
            "request_id": trace.request_id,
            "method": method,
            "route": route,
            "status": status,
            **more,
            "duration_ms": round(seconds * 1000, 2),
            "client": client,
            **({"model": trace.model, "version": trace.version} if trace.model else {}),
            **({"problem": trace.problem} if trace.problem else {}),
        },
    )
