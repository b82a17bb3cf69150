"""What routes ask for, as annotated dependencies.

All are coroutines, also where they await nothing: FastAPI hands plain functions to a thread, and that alone costs more
than the rest of a request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from app.api.schemas import ClassifyParameters, InferenceParameters, PoseBatchParameters, PoseParameters
from app.bodies import BatchUpload, Upload, inflate, parse, parse_batch
from app.errors import Problem, ServiceError
from app.fleet import Fleet
from app.gate import Gate
from app.lifecycle import Lifecycle
from app.middleware import HOLD
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


def _gate(request: Request) -> Gate:
    gate: Gate = request.app.state.gate
    return gate


@contextmanager
def _before_the_body(request: Request) -> Iterator[None]:
    """Have the connection closed where the block refuses a request whose body was not read."""
    try:
        yield
    except ServiceError as error:
        error.close = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        raise


async def require_client(request: Request) -> None:
    """Refuse a request without a key where keys are set, and a client that asks too often.

    Raises ServiceError UNAUTHORIZED or RATE_LIMITED.
    """
    with _before_the_body(request):
        _gate(request).require_client(request.headers, request.client.host if request.client else None)


async def require_admin(request: Request) -> None:
    """Refuse a request without an admin key. Raises ServiceError FORBIDDEN."""
    with _before_the_body(request):
        _gate(request).require_admin(request.headers)


class Body:
    """A request's body for the one who takes it; no other reference keeps it until the answer is sent."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def take(self) -> bytes:
        """The body, once."""
        content, self._content = self._content, b""
        return content


async def _body(request: Request, settings: SettingsDep, service: ServiceDep) -> Body:
    read = bytearray()  # one block that grows: the pieces of many bodies side by side would leave holes in memory
    try:
        async for piece in request.stream():
            read += piece
    except ClientDisconnect as error:
        raise ServiceError(Problem.CLIENT_GONE, "The client closed the connection within the body.") from error
    content = bytes(read)
    del read
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return Body(content)
    work = partial(inflate, content, encoding, settings.max_body_bytes)
    del content
    inflated, _ = await service.scheduler.decoding.run(work, math.inf)
    request.scope[HOLD](len(inflated))
    return Body(inflated)


BodyDep = Annotated[Body, Depends(_body)]


async def _upload(request: Request, body: BodyDep) -> Upload:
    return parse(body.take(), request.headers.get("content-type", ""))


UploadDep = Annotated[Upload, Depends(_upload)]


async def _batch_upload(request: Request, body: BodyDep, service: ServiceDep) -> BatchUpload:
    return parse_batch(body.take(), request.headers.get("content-type", ""), service.max_batch_images)


BatchUploadDep = Annotated[BatchUpload, Depends(_batch_upload)]
Parameters = TypeVar("Parameters", bound=InferenceParameters)


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


def choose(service: Service, task: str, choice: InferenceParameters, trace: Trace) -> Version:
    """The version that a request for a task means; noted in its trace, as its deadline is.

    Raises ServiceError as the repository does.
    """
    trace.answer_within(choice.timeout_s)
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
