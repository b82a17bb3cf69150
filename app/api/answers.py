"""Parts of answers that the routes for several tasks share."""

from __future__ import annotations

from app.api.schemas import ItemProblem
from app.errors import ServiceError
from app.problems import urn
from app.trace import Trace


def stages_ms(trace: Trace) -> dict[str, float]:
    """Milliseconds by stage so far, and `total`: the fields of `TimingMs`."""
    found = {stage: round(seconds * 1000, 3) for stage, seconds in trace.stages.items()}
    return {**found, "total": round(trace.elapsed * 1000, 3)}


def item_problem(error: ServiceError) -> ItemProblem:
    """Why one picture of a batch has no answer."""
    kind = error.problem
    return ItemProblem(type=urn(kind), title=kind.title, status=kind.status, detail=error.detail)
