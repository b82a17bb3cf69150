"""POST /v1/classify and /v1/classify/batch."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.api.answers import item_problem, stages_ms
from app.api.deps import (
    BatchParametersDep,
    BatchUploadDep,
    ClassifyParametersDep,
    ServiceDep,
    TraceDep,
    UploadDep,
    choose,
    while_connected,
)
from app.api.documentation import BATCH_PROBLEMS, CLASSIFY, CLASSIFY_BATCH, PICTURE_PROBLEMS, problems
from app.api.schemas import (
    BatchItem,
    BatchTimingMs,
    ClassifyAnswer,
    ClassifyBatchAnswer,
    ImageSize,
    PredictionOut,
    TimingMs,
)
from app.errors import ServiceError
from app.service import Classification, Prediction

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post("/classify", summary="Classify a picture", openapi_extra=CLASSIFY, responses=problems(*PICTURE_PROBLEMS))
async def classify(
    request: Request, upload: UploadDep, parameters: ClassifyParametersDep, service: ServiceDep, trace: TraceDep
) -> ClassifyAnswer:
    """Say what a picture shows.

    The picture is turned upright by its EXIF orientation; of an animation the first frame counts. `top_k`, `model` and
    `version` may stand in the query or as parts of the form; the query wins.
    """
    version = choose(service, "classification", parameters, trace)
    found = await while_connected(request, service.classify(upload.image, version, parameters.top_k, trace))
    return ClassifyAnswer(
        model=trace.model,
        version=trace.version,
        image=ImageSize(width=found.width, height=found.height),
        predictions=_predictions(found.predictions),
        timing_ms=TimingMs(**stages_ms(trace)),
    )


@router.post(
    "/classify/batch",
    summary="Classify several pictures",
    openapi_extra=CLASSIFY_BATCH,
    responses=problems(*BATCH_PROBLEMS),
)
async def classify_batch(
    request: Request,
    upload: BatchUploadDep,
    parameters: BatchParametersDep,
    service: ServiceDep,
    trace: TraceDep,
) -> ClassifyBatchAnswer:
    """Say what each of several pictures shows; a picture that cannot be used has its error in the answer's place.

    All pictures are answered by one version of the model. Parameters are those of /v1/classify.
    """
    version = choose(service, "classification", parameters, trace)
    found = await while_connected(request, service.classify_batch(upload.images, version, parameters.top_k, trace))
    return ClassifyBatchAnswer(
        model=trace.model,
        version=trace.version,
        results=[_item(index, entry) for index, entry in enumerate(found)],
        timing_ms=BatchTimingMs(**stages_ms(trace)),
    )


def _predictions(predictions: list[Prediction]) -> list[PredictionOut]:
    return [PredictionOut(label=p.label, index=p.index, score=p.score) for p in predictions]


def _item(index: int, found: Classification | ServiceError) -> BatchItem:
    if isinstance(found, ServiceError):
        return BatchItem(index=index, error=item_problem(found))
    size = ImageSize(width=found.width, height=found.height)
    return BatchItem(index=index, image=size, predictions=_predictions(found.predictions))
