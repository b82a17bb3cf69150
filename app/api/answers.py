"""Parts of answers that the routes for several tasks share."""

from __future__ import annotations

from app.api.schemas import ItemProblem, KeypointOut, PersonOut
from app.errors import ServiceError
from app.poses import Poses
from app.problems import urn
from app.trace import Trace
from models.packing.file import Keypoints


def stages_ms(trace: Trace) -> dict[str, float]:
    """Milliseconds by stage so far, and `total`: the fields of `TimingMs`."""
    found = {stage: round(seconds * 1000, 3) for stage, seconds in trace.stages.items()}
    return {**found, "total": round(trace.elapsed * 1000, 3)}


def item_problem(error: ServiceError) -> ItemProblem:
    """Why one picture of a batch has no answer."""
    kind = error.problem
    return ItemProblem(type=urn(kind), title=kind.title, status=kind.status, detail=error.detail)


def people_out(found: Poses, keypoints: Keypoints) -> list[PersonOut]:
    """The people of one picture, coordinates rounded to a hundredth of a pixel."""
    return [
        PersonOut(
            box=person.box,
            score=round(person.score, 4),
            keypoints=[
                KeypointOut(name=name, x=round(x, 2), y=round(y, 2), score=round(score, 4))
                for name, (x, y), score in zip(
                    keypoints.names, person.points.tolist(), person.scores.tolist(), strict=True
                )
            ],
        )
        for person in found.people
    ]
