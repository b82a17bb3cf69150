"""What can go wrong, as one table, and the one exception of this package.

`Problem` is the table: each member is a kind of failure with its HTTP status and title. Code that knows nothing
of HTTP (images, repository, scheduler) raises `ServiceError` with a member and a sentence; `app.problems` turns
that into an answer, and metrics count it by `Problem.slug`.
"""

from __future__ import annotations

from enum import Enum


class Problem(Enum):
    """Kinds of failure: `(HTTP status, title)`. The titles are all different, as enum values must be."""

    BAD_REQUEST = 400, "The request cannot be read"
    EMPTY_BODY = 400, "The request has no body"
    BAD_MULTIPART = 400, "The multipart body cannot be read"
    BAD_JSON = 400, "The JSON cannot be read"
    BAD_TENSOR = 400, "A tensor does not fit the model"
    UNAUTHORIZED = 401, "An API key is needed"
    FORBIDDEN = 403, "An admin key is needed"
    NOT_FOUND = 404, "There is nothing at this path"
    UNKNOWN_MODEL = 404, "There is no such model"
    METHOD_NOT_ALLOWED = 405, "This path does not take this method"
    TIMEOUT = 408, "The request took too long to arrive"
    BODY_TOO_LARGE = 413, "The body is too large"
    BATCH_TOO_LARGE = 413, "The batch has too many pictures"
    TOO_MANY_PIXELS = 413, "The picture has too many pixels"
    UNSUPPORTED_ENCODING = 415, "This content encoding is not accepted"
    NOT_AN_IMAGE = 415, "The data is not a JPEG, PNG or WebP picture"
    MISSING_IMAGE = 422, "There is no picture in the request"
    EMPTY_BATCH = 422, "The batch has no pictures"
    IMAGE_IS_URL = 422, "A URL stands where a picture is expected"
    BROKEN_IMAGE = 422, "The picture is damaged"
    INVALID_PARAMETER = 422, "A parameter is not valid"
    BAD_MODEL = 422, "The model cannot be loaded"
    WRONG_TASK = 422, "The model does another task"
    QUEUE_FULL = 429, "The queue is full"
    RATE_LIMITED = 429, "The client asks too often"
    HEADERS_TOO_LARGE = 431, "The request's headers are too large"
    CLIENT_GONE = 499, "The client closed the connection"
    INTERNAL = 500, "The service failed"
    MODEL_UNAVAILABLE = 503, "The model is not available"
    NOT_READY = 503, "The service is not ready"
    DRAINING = 503, "The service is shutting down"
    DEADLINE = 504, "The request waited too long in the queue"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[0]

    @property
    def title(self) -> str:
        """A short sentence that is the same for each occurrence."""
        return self.value[1]

    @property
    def slug(self) -> str:
        """The name in URNs and metric labels: `queue-full`."""
        return self.name.lower().replace("_", "-")


class ServiceError(Exception):
    """A request, picture or model that cannot be served.

    Attributes
    ----------
    problem : the kind of failure.
    detail : what happened this time, for the person who sent the request.
    retry_after_s : when trying again makes sense, in seconds; None where it never does.
    close : whether the connection cannot be used any further.
    """

    def __init__(self, problem: Problem, detail: str, *, retry_after_s: int | None = None, close: bool = False) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.close = close
