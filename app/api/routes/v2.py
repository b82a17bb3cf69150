"""The Open Inference Protocol V2, as the stock clients of Triton and KServe speak it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response

from app.api import answers_v2
from app.api.deps import BodyDep, FleetDep, LifecycleDep, ServiceDep, TraceDep, require_admin, while_connected
from app.api.documentation import INFER, problems
from app.api.routes import operations
from app.api.schemas import Timeout
from app.api.schemas_v2 import (
    IndexEntry,
    IndexRequest,
    InferAnswer,
    LoadRequest,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    StatsAnswer,
)
from app.bodies import accepted_encoding, deflate
from app.errors import Problem
from app.repository import Version
from app.tensors import encode_answer, parse_call, parse_json

HEADER_LENGTH = "Inference-Header-Content-Length"
COMPRESSED_FROM_BYTES = 1024
"""Smaller answers go as they are: compressing them costs more than it saves."""


async def _latest(name: str, service: ServiceDep, request: Request, trace: TraceDep) -> None:
    _address(request, trace, service.repository.find(name))


async def _exact(name: str, version: str, service: ServiceDep, request: Request, trace: TraceDep) -> None:
    _address(request, trace, service.repository.find(name, version))


def _address(request: Request, trace: TraceDep, version: Version) -> None:
    trace.model, trace.version = version.name, str(version.version)
    request.state.version = version


async def _addressed(request: Request) -> Version:
    version: Version = request.state.version
    return version


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
VersionDep = Annotated[Version, Depends(_addressed)]

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
health = APIRouter(prefix="/v2/health", tags=["Open Inference Protocol"])
"""What those ask who watch the service: it takes no key."""


def of_model(method: str, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Register a route under a model as well as under one of its versions."""

    def register(endpoint: Endpoint) -> Endpoint:
        for prefix, address in (("/models/{name}", _latest), ("/models/{name}/versions/{version}", _exact)):
            router.add_api_route(prefix + path, endpoint, methods=[method], dependencies=[Depends(address)], **options)
        return endpoint

    return register


@router.get("", summary="Describe the server", responses=problems())
async def server_metadata() -> ServerMetadata:
    """Name, version and the extensions that are implemented."""
    return answers_v2.server_metadata("binary_tensor_data")


@health.get("/live", summary="Is the server alive?")
async def server_live() -> ServerLive:
    """200 for as long as the process answers at all."""
    return ServerLive()


@health.get("/ready", summary="Can requests be answered?", responses=problems(Problem.NOT_READY))
async def server_ready(service: ServiceDep, lifecycle: LifecycleDep) -> ServerReady:
    """The same as /readyz."""
    await operations.ready(service, lifecycle)
    return ServerReady()


@router.get("/models/stats", summary="Statistics of all models", responses=problems())
async def all_statistics(service: ServiceDep, fleet: FleetDep) -> StatsAnswer:
    """What every version has answered, by whatever route."""
    return answers_v2.stats(await fleet.statistics(), service.repository)


@router.post(
    "/repository/index", summary="List the repository", responses=problems(Problem.BAD_JSON, Problem.BODY_TOO_LARGE)
)
async def repository_index(body: BodyDep, service: ServiceDep) -> list[IndexEntry]:
    """Every version and whether it can be asked; an empty body will do."""
    content = body.take()
    only_ready = parse_json(content, IndexRequest).ready if content else False
    return answers_v2.index(service.repository, only_ready)


@router.post(
    "/repository/models/{name}/load",
    summary="Load a model, or load it anew",
    dependencies=[Depends(require_admin)],
    responses=problems(
        Problem.BAD_REQUEST,
        Problem.BAD_JSON,
        Problem.FORBIDDEN,
        Problem.UNKNOWN_MODEL,
        Problem.BODY_TOO_LARGE,
        Problem.BAD_MODEL,
    ),
)
async def load_model(name: str, body: BodyDep, service: ServiceDep, fleet: FleetDep) -> list[IndexEntry]:
    """Read every version of a model from disk; together they take the place of what was loaded.

    No request fails meanwhile. If any version cannot be loaded, nothing changes. Needs an admin key.
    """
    content = body.take()
    if content:
        answers_v2.refuse_configuration(parse_json(content, LoadRequest).parameters)
    await fleet.load(name)
    return answers_v2.index(service.repository.versions(name))


@router.post(
    "/repository/models/{name}/unload",
    summary="Unload a model",
    dependencies=[Depends(require_admin)],
    responses=problems(Problem.FORBIDDEN, Problem.UNKNOWN_MODEL),
)
async def unload_model(name: str, service: ServiceDep, fleet: FleetDep) -> list[IndexEntry]:
    """Answer no further requests with a model until it is loaded again. Needs an admin key."""
    await fleet.unload(name)
    return answers_v2.index(service.repository.versions(name))


@of_model("GET", "", summary="Describe a model", responses=problems(Problem.UNKNOWN_MODEL, Problem.MODEL_UNAVAILABLE))
async def model_metadata(version: VersionDep, service: ServiceDep) -> ModelMetadata:
    """The model's input and outputs."""
    return answers_v2.model_metadata(version, service)


@of_model(
    "GET",
    "/ready",
    summary="Can the model answer?",
    responses=problems(Problem.UNKNOWN_MODEL, Problem.MODEL_UNAVAILABLE),
)
async def model_ready(version: VersionDep) -> ModelReady:
    """200 while it can."""
    version.ready_session()
    return ModelReady(name=version.name)


@of_model(
    "GET",
    "/config",
    summary="A model's configuration",
    responses=problems(Problem.UNKNOWN_MODEL, Problem.MODEL_UNAVAILABLE),
)
async def model_config(version: VersionDep, service: ServiceDep) -> ModelConfig:
    """What clients of Triton read: the batch limit, and the layout of the input."""
    return answers_v2.model_config(version, service)


@of_model("GET", "/stats", summary="A model's statistics", responses=problems(Problem.UNKNOWN_MODEL))
async def model_statistics(version: VersionDep, service: ServiceDep, fleet: FleetDep, request: Request) -> StatsAnswer:
    """What a version, or every version of a model, has answered, by whatever route."""
    one = "version" in request.path_params
    versions = [version] if one else service.repository.versions(version.name)
    return answers_v2.stats(await fleet.statistics(), versions)


@of_model(
    "POST",
    "/infer",
    summary="Run a model",
    response_model=InferAnswer,
    openapi_extra=INFER,
    responses=problems(
        Problem.BAD_REQUEST,
        Problem.EMPTY_BODY,
        Problem.BAD_JSON,
        Problem.BAD_TENSOR,
        Problem.UNKNOWN_MODEL,
        Problem.TIMEOUT,
        Problem.BODY_TOO_LARGE,
        Problem.BATCH_TOO_LARGE,
        Problem.TOO_MANY_PIXELS,
        Problem.NOT_AN_IMAGE,
        Problem.UNSUPPORTED_ENCODING,
        Problem.EMPTY_BATCH,
        Problem.MISSING_IMAGE,
        Problem.IMAGE_IS_URL,
        Problem.BROKEN_IMAGE,
        Problem.INVALID_PARAMETER,
        Problem.QUEUE_FULL,
        Problem.MODEL_UNAVAILABLE,
        Problem.DEADLINE,
    ),
)
async def infer(
    request: Request,
    body: BodyDep,
    parameters: Annotated[Timeout, Query()],
    version: VersionDep,
    service: ServiceDep,
    trace: TraceDep,
) -> Response:
    """All outputs of a batch of pixels (UINT8 or, normalised, FP32) or encoded pictures (BYTES), or their best classes.

    Tensors may come and go as JSON or as binary data behind it. The request's own parameter `timeout`, in microseconds,
    means what `timeout_ms` means; the shorter of them holds.
    """
    session = version.ready_session()
    call = parse_call(body.take(), request.headers.get(HEADER_LENGTH), session.file, service.max_batch_images)
    trace.answer_within(min(call.timeout_s, parameters.timeout_s))
    outputs = await while_connected(request, service.infer(call.images, version, session, trace))
    encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
    labels = session.file.header.labels

    def encode() -> tuple[bytes, dict[str, str]]:
        content, json_bytes = encode_answer(call, version.name, str(version.version), outputs, labels)
        headers = {"Content-Type": "application/json"}
        if json_bytes is not None:
            headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(json_bytes)}
        if encoding is not None and len(content) >= COMPRESSED_FROM_BYTES:
            return deflate(content, encoding), {**headers, "Content-Encoding": encoding, "Vary": "Accept-Encoding"}
        return content, headers

    if sum(values.size for values in outputs.values()) < COMPRESSED_FROM_BYTES:
        content, headers = encode()
    else:
        (content, headers), _ = await service.scheduler.decoding.run(encode, math.inf)
    return Response(content, headers=headers)
