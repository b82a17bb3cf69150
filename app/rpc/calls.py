"""What surrounds each call: its id, the checks, its status, its line in the log, its place in the metrics, its span.

Every method is registered as one that takes a stream of messages. On the wire a single message is a stream of one, and
so a call is handed over when its headers are there: keys and limits are checked before its message is taken, and a
message that does not come in time is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message

from app import access, problems
from app.errors import Problem, ServiceError
from app.gate import Gate
from app.keys import Role
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.rpc.methods import Method
from app.rpc.statuses import code_of
from app.settings import Settings
from app.trace import begin_trace

if TYPE_CHECKING:
    from app.otel import Tracing

DEADLINE_SLACK_S = 0.1
"""A client's clock starts before ours: a call that it gives up so shortly before the end of its time ran out of it."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class Calls(grpc.GenericRpcHandler):
    """Serves the calls of one server.

    `methods` are given by their full names; `refusal` says what a call that would wait in a full queue is refused with
    before anything else is done for it.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        gate: Gate,
        metrics: Metrics,
        lifecycle: Lifecycle,
        settings: Settings,
        refusal: Callable[[], ServiceError | None],
        tracing: Tracing | None = None,
    ) -> None:
        self.methods = methods
        self.gate = gate
        self.metrics = metrics
        self.lifecycle = lifecycle
        self.settings = settings
        self.refusal = refusal
        self.tracing = tracing
        self.running: set[asyncio.Task[Any]] = set()
        self.ending = False
        # The library holds a message that is on its way where nobody counts; so many may be at once.
        self.receiving = asyncio.Semaphore(max(1, settings.max_buffered_bytes // settings.max_body_bytes))

    def end(self) -> None:
        """End the calls that are still in progress; their clients hear why."""
        self.ending = True
        for task in self.running:
            task.cancel()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of a call; there is one for methods that do not exist, too."""
        name = handler_call_details.method
        metadata = handler_call_details.invocation_metadata

        async def serve(_: object, context: Context) -> bytes:
            task = asyncio.current_task()
            assert task is not None
            self.running.add(task)
            try:
                return await _Call(self, name, metadata, context).serve()
            finally:
                self.running.discard(task)

        return grpc.stream_unary_rpc_method_handler(serve)


class _Call:
    """One call."""

    def __init__(self, calls: Calls, name: str, metadata: Any, context: Context) -> None:
        self._calls = calls
        self._method = calls.methods.get(name)
        self._name = name
        self._headers = {key: value for key, value in metadata or () if isinstance(value, str)}
        self._context = context
        self._client = peer_address(context.peer())
        self._trace = begin_trace(self._headers.get("x-request-id"))
        if calls.tracing is not None:
            self._trace.intervals = []
        self._bytes = 0
        self._problem: Problem | None = None

    async def serve(self) -> bytes:
        """The answer's bytes; or the call ends with the status that says why there are none."""
        self._calls.metrics.in_flight.inc()
        try:
            try:
                self._context.set_trailing_metadata(self._trailing())
                return await self._answer()
            except ServiceError as error:
                failure = error
            except Exception as error:
                failure = problems.mistake(self._trace, error)
            except asyncio.CancelledError:
                if not self._calls.ending:  # the call has ended, with a status that is not ours
                    self._problem = self._problem or self._why_it_was_cut_off()
                    raise
                detail = "The service ended before the answer was there."
                failure = ServiceError(Problem.DRAINING, detail, retry_after_s=1)
            self._problem = failure.problem
            await self._context.abort(code_of(failure.problem), failure.detail, self._trailing(failure))
        finally:
            self._calls.metrics.in_flight.dec()
            self._record()

    async def _answer(self) -> bytes:
        calls, method = self._calls, self._method
        if method is None:
            raise ServiceError(Problem.NOT_FOUND, "There is no such method.")
        if calls.lifecycle.draining and method.role is not Role.NOBODY:
            raise ServiceError(Problem.DRAINING, "The service is shutting down.", retry_after_s=1)
        if method.computes and (refusal := calls.refusal()) is not None:
            raise refusal
        remaining_s = self._context.time_remaining()
        if remaining_s is not None:
            self._trace.answer_within(remaining_s)
        calls.lifecycle.in_flight += 1
        try:
            if method.role >= Role.CLIENT:
                calls.gate.require_client(self._headers, self._client)
            if method.role >= Role.ADMIN:
                calls.gate.require_admin(self._headers)
            answer = await method.answer(_parse(method.request, await self._message()), self._trace)
            return answer.SerializeToString()
        finally:
            calls.lifecycle.in_flight -= 1
            calls.lifecycle.buffered_bytes -= self._bytes

    async def _message(self) -> bytes:
        """The call's message. Raises ServiceError TIMEOUT, BAD_REQUEST or QUEUE_FULL."""
        limit_s, its_turn = self._calls.settings.body_timeout_s, False
        try:
            async with asyncio.timeout(limit_s), self._calls.receiving:
                its_turn = True
                message = await self._context.read()
                if not isinstance(message, bytes):
                    await self._nothing()
        except TimeoutError:
            if its_turn:
                raise ServiceError(Problem.TIMEOUT, f"The message did not arrive in {limit_s:g} s.") from None
            detail = "As many messages as may be are on their way, and slowly."
            raise ServiceError(Problem.QUEUE_FULL, detail, retry_after_s=1) from None
        lifecycle, settings = self._calls.lifecycle, self._calls.settings
        self._bytes = len(message)
        lifecycle.buffered_bytes += self._bytes
        if lifecycle.buffered_bytes > settings.max_buffered_bytes:
            detail = "The requests in progress hold as much memory as they may."
            raise ServiceError(Problem.QUEUE_FULL, detail, retry_after_s=1)
        return message

    async def _nothing(self) -> NoReturn:
        """End a call that has no message. Raises ServiceError BAD_REQUEST.

        The library ends it itself, which cancels us, where the message is too large. A client that leaves in the middle
        of its message looks the same from here and is counted with those.
        """
        self._problem = None if self._is_late() else Problem.BODY_TOO_LARGE
        await self._context.read()
        raise ServiceError(Problem.BAD_REQUEST, "The call ended without a whole message.")

    def _is_late(self) -> bool:
        return time.monotonic() > self._trace.deadline - DEADLINE_SLACK_S

    def _why_it_was_cut_off(self) -> Problem:
        return Problem.DEADLINE if self._is_late() else Problem.CLIENT_GONE

    def _trailing(self, failure: ServiceError | None = None) -> tuple[tuple[str, str], ...]:
        """What is told behind the answer: the request's id, and of a failure its kind and when to try again."""
        entries = {"x-request-id": self._trace.request_id}
        if failure is not None:
            entries["x-problem"] = failure.problem.slug
            if failure.retry_after_s is not None:
                entries["retry-after"] = str(failure.retry_after_s)
                entries["grpc-retry-pushback-ms"] = str(failure.retry_after_s * 1000)
        return tuple(entries.items())

    def _record(self) -> None:
        problem, known, tracing = self._problem, self._method is not None, self._calls.tracing
        self._trace.problem = problem.slug if problem else None
        status = (code_of(problem) if problem else grpc.StatusCode.OK).name
        watcher = self._method is not None and self._method.role is Role.NOBODY and not problem
        more = {}
        if tracing is not None and not watcher:
            more["trace_id"] = tracing.record_call(
                self._trace, self._name.removeprefix("/"), known, status, self._headers, self._client
            )
        access.record(
            self._calls.metrics,
            self._trace,
            method="gRPC",
            route=self._name if known else "unmatched",
            status=problem.status if problem else 200,
            client=self._client,
            level=logging.DEBUG if watcher else logging.INFO,
            grpc_status=status,
            **more,
        )


def _parse(kind: type[Message], data: bytes) -> Message:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ServiceError(Problem.BAD_REQUEST, f"The message is no sound {kind.DESCRIPTOR.name}.") from error


def peer_address(peer: str) -> str | None:
    """The address in what the library calls a peer, such as `ipv4:127.0.0.1:40000`; None where it has none."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None
