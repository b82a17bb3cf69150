"""Health and metrics: what those who run the service look at."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app import metrics
from app.api.deps import FleetDep, LifecycleDep, ServiceDep
from app.api.documentation import problems
from app.api.examples import METRICS
from app.api.schemas import Health
from app.errors import Problem, ServiceError

router = APIRouter(tags=["operations"])


@router.get("/livez", summary="Is the process alive?")
async def live() -> Health:
    """200 for as long as the process answers at all."""
    return Health(status="live")


@router.get("/readyz", summary="Can requests be answered?", responses=problems(Problem.NOT_READY))
async def ready(service: ServiceDep, lifecycle: LifecycleDep) -> Health:
    """200 once the default model is loaded and warm, 503 before that and while the service shuts down."""
    if lifecycle.draining:
        raise ServiceError(Problem.DRAINING, "The service is shutting down.", retry_after_s=1)
    if not service.repository.ready:
        raise ServiceError(Problem.NOT_READY, "The default model is not loaded.", retry_after_s=1)
    return Health(status="ready")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS}}}},
)
async def scrape(service: ServiceDep, fleet: FleetDep) -> Response:
    """Counters, histograms and gauges in Prometheus' text format, of all workers together."""
    accounts = await fleet.accounts()
    text = service.metrics.render([account.models for account in accounts], [account.pid for account in accounts])
    return Response(text, media_type=metrics.CONTENT_TYPE)
