"""POST /v1/pose and /v1/pose/batch."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.api.answers import item_problem, people_out, stages_ms
from app.api.deps import (
    BatchUploadDep,
    PoseBatchParametersDep,
    PoseParametersDep,
    ServiceDep,
    TraceDep,
    UploadDep,
    choose,
    while_connected,
)
from app.api.documentation import BATCH_PROBLEMS, DRAWN, PICTURE_PROBLEMS, POSE, POSE_BATCH, problems
from app.api.schemas import (
    BatchTimingMs,
    CocoResult,
    ImageSize,
    PoseAnswer,
    PoseBatchAnswer,
    PoseBatchItem,
    TimingMs,
)
from app.bodies import prefers_png
from app.errors import Problem, ServiceError
from app.poses import Poses, read_boxes, read_boxes_by_picture, session_keypoints
from models.packing.file import Keypoints
from models.pose import coco_result

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post(
    "/pose",
    summary="Find people's keypoints in a picture",
    response_model=PoseAnswer | list[CocoResult],
    openapi_extra=POSE,
    responses={**problems(*PICTURE_PROBLEMS, Problem.BATCH_TOO_LARGE), **DRAWN},
)
async def pose(
    request: Request, upload: UploadDep, parameters: PoseParametersDep, service: ServiceDep, trace: TraceDep
) -> PoseAnswer | list[CocoResult] | Response:
    """Find the keypoints of one person, or of several by their boxes.

    Boxes and keypoints are in pixels of the upright picture, turned by its EXIF orientation. Each person counts as an
    image in the queue. The drawn picture is at most 1600 pixels long. Parameters may stand in the query or as parts of
    the form; the query wins.
    """
    version = choose(service, "pose", parameters, trace)
    drawn = parameters.visualize
    if drawn is None:
        drawn = prefers_png(request.headers.get("accept", ""))
    boxes = read_boxes(parameters.boxes)
    found = await while_connected(
        request, service.pose(upload.image, boxes, version, trace, flip=parameters.flip, drawn=drawn)
    )
    if found.overlay is not None:
        return Response(found.overlay, media_type="image/png", headers={"Vary": "Accept"})
    if parameters.format == "coco":
        return _results(found, parameters.image_id)
    keypoints = session_keypoints(version.ready_session())
    return PoseAnswer(
        model=trace.model,
        version=trace.version,
        image=ImageSize(width=found.width, height=found.height),
        people=people_out(found, keypoints),
        skeleton=keypoints.skeleton,
        timing_ms=TimingMs(**stages_ms(trace)),
    )


@router.post(
    "/pose/batch",
    summary="Find people's keypoints in several pictures",
    openapi_extra=POSE_BATCH,
    responses=problems(*BATCH_PROBLEMS),
)
async def pose_batch(
    request: Request, upload: BatchUploadDep, parameters: PoseBatchParametersDep, service: ServiceDep, trace: TraceDep
) -> PoseBatchAnswer:
    """Find the keypoints of the people of several pictures; a picture that cannot be used has its error in its place.

    All pictures are answered by one version of the model. Parameters are those of /v1/pose, except that `boxes` is JSON
    with one list for each picture, and that nothing is drawn.
    """
    version = choose(service, "pose", parameters, trace)
    boxes = [[] for _ in upload.images] if parameters.boxes is None else read_boxes_by_picture(parameters.boxes)
    if len(boxes) != len(upload.images):
        detail = f"boxes: there are {len(boxes)} lists for {len(upload.images)} pictures."
        raise ServiceError(Problem.INVALID_PARAMETER, detail)
    found = await while_connected(
        request, service.pose_batch(upload.images, boxes, version, trace, flip=parameters.flip)
    )
    keypoints = session_keypoints(version.ready_session())
    coco = parameters.format == "coco"
    return PoseBatchAnswer(
        model=trace.model,
        version=trace.version,
        results=[_item(index, entry, keypoints, coco=coco) for index, entry in enumerate(found)],
        skeleton=keypoints.skeleton,
        timing_ms=BatchTimingMs(**stages_ms(trace)),
    )


def _results(found: Poses, image_id: int) -> list[CocoResult]:
    return [CocoResult(**coco_result(image_id, person.points, person.scores)) for person in found.people]


def _item(index: int, found: Poses | ServiceError, keypoints: Keypoints, *, coco: bool) -> PoseBatchItem:
    if isinstance(found, ServiceError):
        return PoseBatchItem(index=index, error=item_problem(found))
    size = ImageSize(width=found.width, height=found.height)
    if coco:
        return PoseBatchItem(index=index, image=size, results=_results(found, index))
    return PoseBatchItem(index=index, image=size, people=people_out(found, keypoints))
