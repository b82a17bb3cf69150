"""Errors as answers: RFC 9457 problem+json, from one handler.

`type, title, status, detail` are the RFC's members, `request_id` finds the log line, and `error` repeats the detail for
clients that look for that key. A validation error lists its fields under `errors`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Problem, ServiceError
from app.trace import Trace, trace_of

MEDIA_TYPE = "application/problem+json"
_HTTP = {
    404: Problem.NOT_FOUND,
    405: Problem.METHOD_NOT_ALLOWED,
    413: Problem.BODY_TOO_LARGE,
    422: Problem.INVALID_PARAMETER,
    503: Problem.NOT_READY,
}

logger = logging.getLogger("signet.error")


def urn(problem: Problem) -> str:
    """The `type` of a problem."""
    return f"urn:signet:problem:{problem.slug}"


def body(problem: Problem, detail: str, request_id: str, **more: object) -> bytes:
    """The JSON of a problem."""
    members = {
        "type": urn(problem),
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "request_id": request_id,
        "error": detail,
        **more,
    }
    return json.dumps(members).encode()


def respond(
    trace: Trace, problem: Problem, detail: str, headers: Mapping[str, str] | None = None, **more: object
) -> Response:
    """The answer for a problem; also noted in the trace, from where log and metrics take it."""
    trace.problem = problem.slug
    content = body(problem, detail, trace.request_id, **more)
    return Response(content, problem.status, dict(headers or {}), MEDIA_TYPE)


def from_error(trace: Trace, error: ServiceError) -> Response:
    """The answer for a ServiceError."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.close:
        headers["Connection"] = "close"
    if error.problem is Problem.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return respond(trace, error.problem, error.detail, headers)


def internal(trace: Trace, error: BaseException) -> Response:
    """The answer for a mistake of ours."""
    return from_error(trace, mistake(trace, error))


def mistake(trace: Trace, error: BaseException) -> ServiceError:
    """What is told of a mistake of ours: it is logged with its traceback, told without it."""
    logger.error("unhandled exception", exc_info=error, extra={"request_id": trace.request_id})
    return ServiceError(Problem.INTERNAL, "The service failed; the request id finds the reason in its log.")


async def handle(request: Request, error: Exception) -> Response:
    """Turn any exception of a route into problem+json."""
    trace = trace_of(request.scope)
    if isinstance(error, ServiceError):
        return from_error(trace, error)
    if isinstance(error, RequestValidationError):
        fields = [_field(entry) for entry in error.errors()]
        detail = "; ".join(f"{entry['field']}: {entry['message']}" for entry in fields)
        return respond(trace, Problem.INVALID_PARAMETER, detail, errors=fields)
    if isinstance(error, HTTPException):
        problem = _HTTP.get(error.status_code, Problem.BAD_REQUEST)
        return respond(trace, problem, f"{problem.title}.", error.headers)
    return internal(trace, error)


def _field(entry: Mapping[str, Any]) -> dict[str, str]:
    place = entry["loc"][1:] or entry["loc"]
    return {"field": ".".join(str(part) for part in place), "message": str(entry["msg"])}


HANDLED: tuple[type[Exception], ...] = (ServiceError, RequestValidationError, HTTPException)
