"""What is known about one request while it is served; read by the access log, the metrics and the error handlers."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Scope

_KEY = "signet.trace"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class Trace:
    """One request.

    Attributes
    ----------
    request_id : the client's `X-Request-ID` where it is harmless, else a new one.
    model, version : set once a model has been chosen.
    route : template of the route that it was for, where it was refused before there was one.
    problem : the slug of the problem that it was answered with.
    stages : seconds by stage.
    deadline : `time.monotonic` instant after which the client wants no answer any more.
    intervals : each stretch of a stage with the instants of its beginning and end, where somebody wants to know.
    """

    request_id: str
    begun: float = field(default_factory=time.monotonic)
    model: str = ""
    version: str = ""
    route: str = ""
    problem: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    deadline: float = math.inf
    intervals: list[tuple[str, float, float]] | None = None

    def answer_within(self, seconds: float) -> None:
        """Note that the client waits for so long, from when the request's headers were there; the shortest counts."""
        self.deadline = min(self.deadline, self.begun + seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to a stage."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - begun)

    def add(self, name: str, seconds: float, begun: float | None = None) -> None:
        """Add to the time of a stage, by default for what has just ended."""
        self.stages[name] = self.stages.get(name, 0.0) + seconds
        self.note(name, time.monotonic() - seconds if begun is None else begun, seconds)

    def note(self, name: str, begun: float, seconds: float) -> None:
        """Keep when a stage was, where somebody wants to know."""
        if self.intervals is not None:
            self.intervals.append((name, begun, begun + seconds))

    @property
    def elapsed(self) -> float:
        """Seconds since the request's headers were there."""
        return time.monotonic() - self.begun


def begin_trace(offered_id: str | None = None) -> Trace:
    """Begin the trace of a request, which may bring an id of its own."""
    harmless = offered_id is not None and _REQUEST_ID.fullmatch(offered_id)
    return Trace(offered_id if harmless and offered_id else uuid.uuid4().hex)


def open_trace(scope: Scope, offered_id: str | None = None) -> Trace:
    """Begin the trace of a request and attach it to the scope."""
    trace = begin_trace(offered_id)
    scope[_KEY] = trace
    return trace


def trace_of(scope: Scope) -> Trace:
    """The trace of a request; a fresh one where the middleware did not run."""
    found = scope.get(_KEY)
    return found if isinstance(found, Trace) else open_trace(scope)
