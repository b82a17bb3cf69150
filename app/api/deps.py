"""What routes ask for, as annotated dependencies.

All are coroutines, also where they await nothing: FastAPI hands plain functions to a thread, and that alone costs more
than the rest of a request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from app.api.schemas import ClassifyParameters, ModelChoice, PoseBatchParameters, PoseParameters
from app.bodies import BatchUpload, Upload, inflate, parse, parse_batch
from app.errors import Problem, ServiceError
from app.fleet import Fleet
from app.keys import Keys, Role
from app.lifecycle import Lifecycle
from app.rates import RateLimit, address_name
from app.repository import Version
from app.service import Service
from app.settings import Settings
from app.trace import Trace, trace_of

T = TypeVar("T")


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


async def _lifecycle(request: Request) -> Lifecycle:
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle


async def _trace(request: Request) -> Trace:
    return trace_of(request.scope)


SettingsDep = Annotated[Settings, Depends(_settings)]
ServiceDep = Annotated[Service, Depends(_service)]
FleetDep = Annotated[Fleet, Depends(_fleet)]
LifecycleDep = Annotated[Lifecycle, Depends(_lifecycle)]
TraceDep = Annotated[Trace, Depends(_trace)]


def _match(request: Request) -> tuple[Role, bytes | None]:
    keys: Keys = request.app.state.keys
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    given = request.headers.get("x-api-key") or (token.strip() if kind.lower() == "bearer" else None)
    return keys.match(given)


def _refusal(request: Request, problem: Problem, detail: str, retry_after_s: int | None = None) -> ServiceError:
    """What a request is refused with before its body was read."""
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    return ServiceError(problem, detail, retry_after_s=retry_after_s, close=has_body)


async def require_client(request: Request) -> None:
    """Refuse a request without a key where keys are set, and a client that asks too often.

    Wrong keys count for their address, so that they cannot be tried quickly. Raises ServiceError UNAUTHORIZED or
    RATE_LIMITED.
    """
    role, key = _match(request)
    rates: RateLimit | None = request.app.state.rates
    if rates is not None:
        wait_s = rates.wait_s(key or address_name(request.client.host if request.client else None))
        if wait_s:
            detail = f"Requests come faster than they are accepted; the next one is in {wait_s:.3g} s."
            raise _refusal(request, Problem.RATE_LIMITED, detail, math.ceil(wait_s))
    if role < Role.CLIENT:
        detail = "Send a valid key, as Authorization: Bearer KEY or as X-API-Key: KEY."
        raise _refusal(request, Problem.UNAUTHORIZED, detail)


async def require_admin(request: Request) -> None:
    """Refuse a request without an admin key. Raises ServiceError FORBIDDEN."""
    if _match(request)[0] < Role.ADMIN:
        raise _refusal(request, Problem.FORBIDDEN, "Loading and unloading models takes an admin key.")


async def _body(request: Request, settings: SettingsDep) -> bytes:
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise ServiceError(Problem.CLIENT_GONE, "The client closed the connection within the body.") from error
    return inflate(body, request.headers.get("content-encoding", ""), settings.max_body_bytes)


BodyDep = Annotated[bytes, Depends(_body)]


async def _upload(request: Request, body: BodyDep) -> Upload:
    return parse(body, request.headers.get("content-type", ""))


UploadDep = Annotated[Upload, Depends(_upload)]


async def _batch_upload(request: Request, body: BodyDep, service: ServiceDep) -> BatchUpload:
    return parse_batch(body, request.headers.get("content-type", ""), service.max_batch_images)


BatchUploadDep = Annotated[BatchUpload, Depends(_batch_upload)]
Parameters = TypeVar("Parameters", bound=ModelChoice)


def _with_fields(request: Request, query: Parameters, fields: Mapping[str, list[str]]) -> Parameters:
    """The query's parameters, and for those that it lacks the parts of the form; of a repeated part the last counts."""
    kind = type(query)
    parts: dict[str, object] = {}
    for name in kind.model_fields.keys() - request.query_params.keys():
        values = fields.get(name)
        if values:
            parts[name] = values if isinstance(getattr(query, name), list) else values[-1]
    if not parts:
        return query
    try:
        return kind.model_validate({**query.model_dump(exclude_unset=True), **parts})
    except ValidationError as error:
        raise RequestValidationError([{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]) from error


async def _classify_parameters(
    request: Request, query: Annotated[ClassifyParameters, Query()], upload: UploadDep
) -> ClassifyParameters:
    return _with_fields(request, query, upload.fields)


async def _classify_batch_parameters(
    request: Request, query: Annotated[ClassifyParameters, Query()], upload: BatchUploadDep
) -> ClassifyParameters:
    return _with_fields(request, query, upload.fields)


async def _pose_parameters(
    request: Request, query: Annotated[PoseParameters, Query()], upload: UploadDep
) -> PoseParameters:
    return _with_fields(request, query, upload.fields)


async def _pose_batch_parameters(
    request: Request, query: Annotated[PoseBatchParameters, Query()], upload: BatchUploadDep
) -> PoseBatchParameters:
    return _with_fields(request, query, upload.fields)


ClassifyParametersDep = Annotated[ClassifyParameters, Depends(_classify_parameters)]
BatchParametersDep = Annotated[ClassifyParameters, Depends(_classify_batch_parameters)]
PoseParametersDep = Annotated[PoseParameters, Depends(_pose_parameters)]
PoseBatchParametersDep = Annotated[PoseBatchParameters, Depends(_pose_batch_parameters)]


def choose(service: Service, task: str, choice: ModelChoice, trace: Trace) -> Version:
    """The version that a request for a task means; noted in its trace. Raises ServiceError as the repository does."""
    name = service.repository.default_for(task) if choice.model is None else choice.model
    version = service.repository.find(name, choice.version)
    trace.model, trace.version = version.name, str(version.version)
    return version


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it when the client goes away: an answer nobody waits for is not computed.

    To be called when the body has been read; the next thing to be received is then the disconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ServiceError(Problem.CLIENT_GONE, "The client closed the connection before its answer was there.")
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
