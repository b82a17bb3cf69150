"""POST /v1/classify and /v1/classify/batch."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.api.deps import (
    BatchParametersDep,
    BatchUploadDep,
    ClassifyParametersDep,
    ServiceDep,
    TraceDep,
    UploadDep,
    while_connected,
)
from app.api.documentation import BATCH_UPLOAD, UPLOAD, problems
from app.api.schemas import (
    BatchItem,
    BatchTimingMs,
    ClassifyAnswer,
    ClassifyBatchAnswer,
    ImageSize,
    ItemProblem,
    PredictionOut,
    TimingMs,
)
from app.errors import Problem, ServiceError
from app.problems import urn
from app.service import Classification, Prediction
from app.trace import Trace

router = APIRouter(prefix="/v1", tags=["inference"])

_UPLOAD_PROBLEMS = (
    Problem.BAD_REQUEST,
    Problem.EMPTY_BODY,
    Problem.BAD_MULTIPART,
    Problem.UNKNOWN_MODEL,
    Problem.TIMEOUT,
    Problem.BODY_TOO_LARGE,
    Problem.UNSUPPORTED_ENCODING,
    Problem.INVALID_PARAMETER,
    Problem.WRONG_TASK,
    Problem.QUEUE_FULL,
    Problem.MODEL_UNAVAILABLE,
    Problem.DEADLINE,
)


@router.post(
    "/classify",
    summary="Classify a picture",
    openapi_extra=UPLOAD,
    responses=problems(
        *_UPLOAD_PROBLEMS,
        Problem.TOO_MANY_PIXELS,
        Problem.NOT_AN_IMAGE,
        Problem.MISSING_IMAGE,
        Problem.IMAGE_IS_URL,
        Problem.BROKEN_IMAGE,
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
    return ClassifyAnswer(
        model=trace.model,
        version=trace.version,
        image=ImageSize(width=found.width, height=found.height),
        predictions=_predictions(found.predictions),
        timing_ms=TimingMs(**_stages_ms(trace)),
    )


@router.post(
    "/classify/batch",
    summary="Classify several pictures",
    openapi_extra=BATCH_UPLOAD,
    responses=problems(
        *_UPLOAD_PROBLEMS,
        Problem.BATCH_TOO_LARGE,
        Problem.EMPTY_BATCH,
    ),
)
async def classify_batch(
    request: Request, upload: BatchUploadDep, parameters: BatchParametersDep, service: ServiceDep, trace: TraceDep
) -> ClassifyBatchAnswer:
    """Say what each of several pictures shows; a picture that cannot be used has its error in the answer's place.

    All pictures are answered by one version of the model. Parameters are those of /v1/classify.
    """
    version = service.repository.find(parameters.model, parameters.version)
    trace.model, trace.version = version.name, str(version.version)
    found = await while_connected(request, service.classify_batch(upload.images, version, parameters.top_k, trace))
    return ClassifyBatchAnswer(
        model=trace.model,
        version=trace.version,
        results=[_item(index, entry) for index, entry in enumerate(found)],
        timing_ms=BatchTimingMs(**_stages_ms(trace)),
    )


def _stages_ms(trace: Trace) -> dict[str, float]:
    stages_ms = {stage: round(seconds * 1000, 3) for stage, seconds in trace.stages.items()}
    return {**stages_ms, "total": round(trace.elapsed * 1000, 3)}


def _predictions(predictions: list[Prediction]) -> list[PredictionOut]:
    return [PredictionOut(label=p.label, index=p.index, score=p.score) for p in predictions]


def _item(index: int, found: Classification | ServiceError) -> BatchItem:
    if isinstance(found, ServiceError):
        kind = found.problem
        told = ItemProblem(type=urn(kind), title=kind.title, status=kind.status, detail=found.detail)
        return BatchItem(index=index, error=told)
    size = ImageSize(width=found.width, height=found.height)
    return BatchItem(index=index, image=size, predictions=_predictions(found.predictions))
