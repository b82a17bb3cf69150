"""Pure ASGI middleware around every route.

`Observe` gives each request its id, its security headers, its line in the log, its place in the metrics and, where that
is wanted, its span, and turns what nothing else caught into a 500. `Guard` refuses requests while the service drains or
is full, and bodies that are too large or too slow.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import access, problems
from app.errors import Problem, ServiceError
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.settings import Settings
from app.trace import Trace, open_trace, trace_of

if TYPE_CHECKING:
    from app.otel import Tracing

ALWAYS_ANSWERED = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Paths that answer while the service drains: whoever watches it must see that."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of every answer that does not bring its own; a page brings the Content-Security-Policy that it needs."""

HOLD = "signet.hold"
"""Of a request's scope: what counts its body once it is inflated."""
TRUNCATED = "signet.truncated"
"""Set in a request's scope by the server when the client stopped sending in the middle of the body."""

COMPUTING = ("/v1/classify", "/v1/classify/batch", "/v1/pose", "/v1/pose/batch")
"""Paths of requests that take places in the queue; those of the Open Inference Protocol come on top."""
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")

LINGER_S = 1.0
LINGER_BYTES = 64 << 20
SMALL_BYTES = 1 << 20
"""A body that is read although its request is refused: its connection can then be kept."""


def _route(scope: Scope, trace: Trace) -> str:
    """The template of the route that matched (`/v1/models/{name}`), never the raw path."""
    template = getattr(scope.get("route"), "path", None)
    return template if isinstance(template, str) else trace.route or "unmatched"


def computing_route(method: str, path: str) -> str | None:
    """The template of the route if a request is one that computes."""
    if method != "POST":
        return None
    if path in COMPUTING:
        return path
    found = _INFER.fullmatch(path)
    if found is None:
        return None
    return "/v2/models/{name}/versions/{version}/infer" if found[1] else "/v2/models/{name}/infer"


class Observe:
    """Request id, security headers, access log, metrics, spans, and the last resort for exceptions."""

    def __init__(self, app: ASGIApp, metrics: Metrics, lifecycle: Lifecycle, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.lifecycle = lifecycle
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # answered as GET; the server sends the head of it alone
            scope = {**scope, "method": "GET"}
        trace = open_trace(scope, Headers(scope=scope).get("x-request-id"))
        if self.tracing is not None:
            trace.intervals = []
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = trace.request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if self.lifecycle.draining:
                    headers["Connection"] = "close"
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if status or not self.lifecycle.draining:
                raise
            ended = ServiceError(
                Problem.DRAINING, "The service ended before the answer was there.", retry_after_s=1, close=True
            )
            await problems.from_error(trace, ended)(scope, receive, send_with_headers)
        except Exception as error:
            if status:  # too late for another answer: let the server cut the connection
                raise
            await problems.internal(trace, error)(scope, receive, send_with_headers)
        finally:
            self.metrics.in_flight.dec()
            self._record({**scope, "method": method}, trace, status)

    def _record(self, scope: Scope, trace: Trace, status: int) -> None:
        route, client = _route(scope, trace), scope.get("client")
        watcher = route in ALWAYS_ANSWERED and status < 400
        more = {}
        if self.tracing is not None and not watcher:
            more["trace_id"] = self.tracing.record(scope, trace, route, status)
        access.record(
            self.metrics,
            trace,
            method=scope["method"],
            route=route,
            status=status,
            client=client[0] if client else None,
            level=logging.DEBUG if watcher else logging.INFO,
            **more,
        )


class Guard:
    """Limits on what may arrive: nothing new while draining, no body beyond the limits of size and time.

    While the queue is full, requests that would wait in it are refused here, before anything else is done for them: a
    refusal that costs much makes an overload worse. `refusal` says with what, and None while there is room.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, lifecycle: Lifecycle, refusal: Callable[[], ServiceError | None]
    ) -> None:
        self.app = app
        self.settings = settings
        self.lifecycle = lifecycle
        self.refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        upload = _Upload(scope, receive, send, self.settings, self.lifecycle)
        scope[HOLD] = upload.hold
        if self.lifecycle.draining and scope["path"] not in ALWAYS_ANSWERED:
            refusal = ServiceError(Problem.DRAINING, "The service is shutting down.", retry_after_s=1, close=True)
            await problems.from_error(trace_of(scope), refusal)(scope, receive, upload.send)
            return
        self.lifecycle.in_flight += 1
        try:
            await self._refuse_if_full(scope, upload)
            await self.app(scope, upload.receive, upload.send)
        except ServiceError as error:
            await problems.from_error(trace_of(scope), error)(scope, receive, upload.send)
        finally:
            self.lifecycle.in_flight -= 1
            upload.release()

    async def _refuse_if_full(self, scope: Scope, upload: _Upload) -> None:
        refusal = self.refusal()
        if refusal is None:
            return
        route = computing_route(scope["method"], scope["path"])
        if route is None:
            return
        trace_of(scope).route = route
        if upload.small:
            await upload.discard()
        else:
            refusal.close = True
        raise refusal


class _Upload:
    """The body of one request on its way in: counted, timed, and swept away where it was refused."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings, lifecycle: Lifecycle) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._settings = settings
        self._lifecycle = lifecycle
        self._headers = Headers(scope=scope)
        self._bytes = self._held = 0
        self._complete = False
        self._closing = False
        self._deadline = time.monotonic() + settings.body_timeout_s

    @property
    def small(self) -> bool:
        """Whether the body is on its way, and short enough to read it only to have it out of the way."""
        declared = self._headers.get("content-length", "")
        return "expect" not in self._headers and declared.isdecimal() and int(declared[:20]) <= SMALL_BYTES

    async def discard(self) -> None:
        """Read the body to its end, within its limits. Raises ServiceError where one is passed or the client leaves."""
        while not self._complete:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ServiceError(Problem.CLIENT_GONE, "The client closed the connection within the body.")

    def _check_length(self) -> None:
        declared = self._headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self._settings.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> ServiceError:
        limit = self._settings.max_body_bytes
        return ServiceError(Problem.BODY_TOO_LARGE, f"The body is larger than {limit} bytes.", close=True)

    async def receive(self) -> Message:
        """The next piece of the body; none of one whose declared length is too large.

        Raises ServiceError where a limit is passed.
        """
        if self._complete:
            return await self._receive()
        if not self._bytes:
            self._check_length()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            limit_s = self._settings.body_timeout_s
            raise ServiceError(Problem.TIMEOUT, f"The body did not arrive in {limit_s:g} s.", close=True) from None
        if self._scope.get(TRUNCATED):
            raise ServiceError(Problem.BAD_REQUEST, "The body is shorter than its declared length.", close=True)
        if message["type"] == "http.request":
            self._complete = not message.get("more_body", False)
            self._count(len(message.get("body", b"")))
        return message

    def _count(self, size: int) -> None:
        self._bytes += size
        self._held += size
        self._lifecycle.buffered_bytes += size
        if self._bytes > self._settings.max_body_bytes:
            raise self._too_large()
        self._check_held()

    def hold(self, size: int) -> None:
        """Count what an inflated body has become, in place of what arrived. Raises ServiceError QUEUE_FULL."""
        self._lifecycle.buffered_bytes += size - self._held
        self._held = size
        self._check_held()

    def _check_held(self) -> None:
        if self._lifecycle.buffered_bytes > self._settings.max_buffered_bytes:
            detail = "The requests in progress hold as much memory as they may."
            raise ServiceError(Problem.QUEUE_FULL, detail, retry_after_s=1, close=True)

    def release(self) -> None:
        """Give back what the body counted for."""
        self._lifecycle.buffered_bytes -= self._held

    async def send(self, message: Message) -> None:
        """Pass the answer on. Where the connection is closed under an unread body, read on for a moment first.

        Closing a socket that still receives makes the kernel reset it, and the client may lose the answer.
        """
        if message["type"] == "http.response.start":
            self._closing = Headers(raw=message.get("headers", [])).get("connection", "").lower() == "close"
        elif self._closing and not message.get("more_body", False) and self._unread:
            await self._send({**message, "more_body": True})
            await self._sweep()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    @property
    def _unread(self) -> bool:
        has_body = "content-length" in self._headers or "transfer-encoding" in self._headers
        return has_body and not self._complete and "expect" not in self._headers

    async def _sweep(self) -> None:
        swept = 0
        try:
            async with asyncio.timeout(LINGER_S):
                while swept < LINGER_BYTES:
                    message = await self._receive()
                    swept += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return
