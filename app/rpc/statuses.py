"""Which status of gRPC says what an HTTP status says."""

from __future__ import annotations

from grpc import StatusCode

from app.errors import Problem

_BY_HTTP = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    408: StatusCode.DEADLINE_EXCEEDED,
    413: StatusCode.INVALID_ARGUMENT,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    431: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
_OF_THEIR_OWN = {
    Problem.NOT_FOUND: StatusCode.UNIMPLEMENTED,  # no such method; NOT_FOUND is a model's
    Problem.BODY_TOO_LARGE: StatusCode.RESOURCE_EXHAUSTED,  # as the library itself says it
    Problem.BAD_MODEL: StatusCode.FAILED_PRECONDITION,  # the call was right, a file is not
}


def code_of(problem: Problem) -> StatusCode:
    """The status that a call ends with."""
    return _OF_THEIR_OWN.get(problem, _BY_HTTP[problem.status])
