"""POST /v1/classify."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.api.deps import ClassifyParametersDep, ServiceDep, TraceDep, UploadDep, while_connected
from app.api.documentation import UPLOAD, problems
from app.api.schemas import ClassifyAnswer, ImageSize, PredictionOut, TimingMs
from app.errors import Problem

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post(
    "/classify",
    summary="Classify a picture",
    openapi_extra=UPLOAD,
    responses=problems(
        Problem.BAD_REQUEST,
        Problem.EMPTY_BODY,
        Problem.BAD_MULTIPART,
        Problem.UNKNOWN_MODEL,
        Problem.TIMEOUT,
        Problem.BODY_TOO_LARGE,
        Problem.TOO_MANY_PIXELS,
        Problem.NOT_AN_IMAGE,
        Problem.UNSUPPORTED_ENCODING,
        Problem.MISSING_IMAGE,
        Problem.IMAGE_IS_URL,
        Problem.BROKEN_IMAGE,
        Problem.INVALID_PARAMETER,
        Problem.WRONG_TASK,
        Problem.QUEUE_FULL,
        Problem.MODEL_UNAVAILABLE,
        Problem.DEADLINE,
    ),
)
async def classify(
    request: Request, upload: UploadDep, parameters: ClassifyParametersDep, service: ServiceDep, trace: TraceDep
) -> ClassifyAnswer:
    """Say what a picture shows.

    The picture is turned upright by its EXIF orientation; of an animation the first frame counts. `top_k`, `model` and
    `version` may stand in the query or as parts of the form; the query wins.
    """
    version = service.repository.find(parameters.model, parameters.version)
    trace.model, trace.version = version.name, str(version.version)
    found = await while_connected(request, service.classify(upload.image, version, parameters.top_k, trace))
    stages_ms = {stage: round(seconds * 1000, 3) for stage, seconds in trace.stages.items()}
    return ClassifyAnswer(
        model=trace.model,
        version=trace.version,
        image=ImageSize(width=found.width, height=found.height),
        predictions=[PredictionOut(label=p.label, index=p.index, score=p.score) for p in found.predictions],
        timing_ms=TimingMs(**stages_ms, total=round(trace.elapsed * 1000, 3)),
    )
