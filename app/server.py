"""The web server around the application: limits on what uvicorn leaves unlimited, and an orderly end.

SIGTERM or SIGINT: the service drains (new requests get 503 and `Connection: close`, accepted ones are answered), then
the sockets close and the process exits with 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import time
import uuid
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app import logs, memory, problems
from app.engine import available_cpus
from app.errors import Problem, ServiceError
from app.lifecycle import Lifecycle
from app.main import Beside, create_app
from app.metrics import Metrics
from app.middleware import SECURITY_HEADERS, TRUNCATED
from app.settings import Settings
from app.workers import Shared, supervise

logger = logging.getLogger("signet.server")

LEAST_TAKEN_BYTES = 64 << 10
"""What of its answer a client has to take in `send_timeout_s`, or the rest of it."""
NOT_TAKEN = "answer-not-taken"
"""The reason under which such answers are counted."""
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with a limit on the size and the time of a request's head, and problems as problem+json.

    It needs `settings` and `service` on the application's state. What it refuses never becomes a request there.

    An offer to upgrade the connection is not taken up, and the request is answered (RFC 9110, 7.8). The parser does not
    see the offer: to it such a request has no body, and what follows is another protocol. Where a client does not take
    its answer, which waits in memory, the connection is cut.
    """

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        state = config.app.state  # type: ignore[union-attr]
        self._settings: Settings = state.settings
        self._metrics: Metrics = state.service.metrics
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._message_ended = False
        self._send_timer: asyncio.TimerHandle | None = None
        self._refusal: ServiceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; the head of its first request has to follow in time."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_timer()
        if self._send_timer is not None:
            self._send_timer.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. In the middle of a body that is a mistake which it can still be told."""
        cycle = self.cycle
        if cycle is None or not cycle.more_body or cycle.response_started:
            return False
        cycle.scope[TRUNCATED] = True  # type: ignore[literal-required]
        cycle.message_event.set()
        return True

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; as long as its head is incomplete, they count against its limit."""
        if self._between_bodies:
            end = data.find(b"\r\n\r\n")
            head = data if end < 0 else data[: end + 2]
            data = _UPGRADE.sub(b"", head) + data[len(head) :]
        self._message_ended = False
        super().data_received(data)
        if self._head_timer is not None and not self.transport.is_closing():
            self._head_bytes += 0 if self._message_ended else len(data)  # another request's body may be among these
            if self._head_bytes > self._settings.max_header_bytes:
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The whole head is there."""
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._settings.max_header_bytes:
            self._refusal = self._too_large()
            raise self._refusal  # the parser stops, and send_400_response answers
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        ):  # it came in pieces, or behind another request
            self._refusal = ServiceError(Problem.BAD_REQUEST, "Ask for an upgrade in a request without a body.")
            raise self._refusal
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._message_ended = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is with the transport, and may wait there for the client to take it."""
        super().on_response_complete()
        self._watch_sending()

    def pause_writing(self) -> None:
        """The client takes its answer more slowly than it comes."""
        super().pause_writing()
        self._watch_sending()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser did not take."""
        self._refuse(self._refusal or ServiceError(Problem.BAD_REQUEST, msg))

    @property
    def _between_bodies(self) -> bool:
        """Whether the next byte belongs to a head."""
        if self._head_timer is not None or self.cycle is None:
            return True
        return self.cycle.response_complete and not self.cycle.more_body and not self.pipeline

    def _watch_sending(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        if self._send_timer is None and waiting:
            self._send_timer = self.loop.call_later(self._settings.send_timeout_s, self._check_sending, waiting)

    def _check_sending(self, before: int) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size() > max(0, before - LEAST_TAKEN_BYTES):
            self._metrics.rejected.labels(NOT_TAKEN).inc()
            logger.info("answer not taken", extra={"client": self.client[0] if self.client else None})
            self.transport.abort()
        else:
            self._watch_sending()

    def _too_large(self) -> ServiceError:
        limit = self._settings.max_header_bytes
        return ServiceError(Problem.HEADERS_TOO_LARGE, f"The request line and headers have more than {limit} bytes.")

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._settings.header_timeout_s, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if not self._head_bytes:  # a browser's connection in reserve: nothing was asked, so nothing is answered
            self._head_timer = None
            self.transport.close()
            return
        limit_s = self._settings.header_timeout_s
        self._refuse(ServiceError(Problem.TIMEOUT, f"The headers did not arrive in {limit_s:g} s."))

    def _refuse(self, error: ServiceError) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        request_id = uuid.uuid4().hex
        content = problems.body(error.problem, error.detail, request_id)
        headers = {
            "content-type": problems.MEDIA_TYPE,
            "content-length": str(len(content)),
            "connection": "close",
            "x-request-id": request_id,
            **SECURITY_HEADERS,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.problem.status] + head.encode() + b"\r\n" + content)
        self.transport.close()
        self._metrics.refuse(error.problem)
        logger.info(
            "refused",
            extra={"request_id": request_id, "status": error.problem.status, "problem": error.problem.slug},
        )


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it stops."""

    def __init__(self, config: uvicorn.Config, settings: Settings, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._settings = settings
        self._lifecycle = lifecycle
        self._drain_begun = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; a second signal stops at once. The exit status stays 0: nothing went wrong."""
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
            return
        self._drain_begun = time.monotonic()
        self._lifecycle.draining = True
        logger.info("draining", extra={"signal": signal.Signals(sig).name, "in_flight": self._lifecycle.in_flight})

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        if self._lifecycle.draining:
            spent_s = time.monotonic() - self._drain_begun
            left_s = self._settings.drain_timeout_s - spent_s
            idle = self._lifecycle.in_flight == 0 and spent_s >= self._settings.drain_delay_s
            self.should_exit = self.should_exit or idle or left_s <= 0
            self.config.timeout_graceful_shutdown = max(1, int(left_s))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything; what runs beside the application also at a second signal, as its threads would go on."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def serve(settings: Settings) -> int:
    """Serve until a signal ends it; returns the process's exit status.

    Raises ModuleNotFoundError where the settings ask for gRPC and its library is not there.
    """
    logs.configure(settings.log_level)
    memory.return_large_blocks()
    if settings.grpc_port is None:
        return _serve(settings)
    from app.rpc.server import reserve

    try:
        reserved = reserve(settings.host, settings.grpc_port)
    except OSError as error:
        logger.error("gRPC cannot listen on %s:%s: %s", settings.host, settings.grpc_port, error)
        return 1
    with reserved:
        return _serve(settings.model_copy(update={"grpc_port": reserved.getsockname()[1]}))


def _serve(settings: Settings) -> int:
    if settings.workers == 1:
        return _run(settings)
    available_cpus()  # imports the engine, as the last of what the workers share
    listener = uvicorn.Config("", host=settings.host, port=settings.port, log_config=None).bind_socket()
    return supervise(settings, listener)


def serve_worker(settings: Settings, listener: socket.socket, shared: Shared) -> int:
    """Serve as one worker of several, on a socket that is bound already."""
    return _run(settings, [listener], shared)


def _run(settings: Settings, sockets: list[socket.socket] | None = None, shared: Shared | None = None) -> int:
    app = create_app(settings, shared, _grpc(settings))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,
    )
    server = Server(config, settings, app.state.lifecycle)
    server.run(sockets)
    return 0 if server.started else 1


def _grpc(settings: Settings) -> Beside | None:
    """What serves gRPC beside the application, where that is asked for."""
    if settings.grpc_port is None:
        return None
    from app.rpc.server import beside

    return beside
