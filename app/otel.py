"""Traces for OpenTelemetry, an extra that is off unless `SIGNET_OTEL` asks for it: nothing else imports this module.

A request is one server span after the semantic conventions of HTTP or RPC, a child of the span that its `traceparent`
names, with a span for each stage below it: queue, decode, preprocess, infer, postprocess. They are made from the
request's trace when it is over, so a request pays for them after its answer. Where they go is said by OpenTelemetry's
own variables.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import Scope

from app.about import program_version
from app.trace import Trace

try:
    from opentelemetry import propagate
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
    from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
except ModuleNotFoundError as error:
    raise ValueError(
        f"SIGNET_OTEL needs the package {error.name!r}; install signet[otel]:\n"
        "    pip install 'signet[otel]'      (in a source checkout: pip install -e '.[otel]')"
    ) from error

FLUSH_S = 5.0
"""How long the end of the service waits for its last spans to arrive."""
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_FAILED_CALLS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses of gRPC that are a server's failure, as the semantic conventions see it."""
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_MAX_TEXT = 1000


def exporter() -> SpanExporter | None:
    """Where spans go, from OTEL_TRACES_EXPORTER: `otlp` over HTTP, `console`, or `none`.

    Raises ValueError naming the variable for what this service does not have.
    """
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if kind == "none":
        return None
    if kind == "console":
        return ConsoleSpanExporter()
    if kind != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER: {kind!r} is not otlp, console or none")
    for variable in _PROTOCOLS:
        protocol = os.environ.get(variable, "").strip()
        if protocol not in ("", "http/protobuf"):
            raise ValueError(f"{variable}: {protocol!r} is not http/protobuf, which is what this service speaks")
    return OTLPSpanExporter()


class Tracing:
    """Makes spans of requests that are over and sends them, from a thread of its own."""

    def __init__(self, spans: SpanExporter | None = None) -> None:
        spans = spans or exporter()
        named = OTELResourceDetector().detect().attributes
        resource = Resource.create({"service.name": "signet", "service.version": program_version(), **named})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if spans is not None:
            self._provider.add_span_processor(BatchSpanProcessor(spans))
        self._tracer = self._provider.get_tracer("signet", program_version())

    def record(self, scope: Scope, trace: Trace, route: str, status: int) -> str:
        """Make the spans of a request that has just ended; gives the id of the trace that they belong to."""
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        template = None if route == "unmatched" else route
        name = " ".join(filter(None, ("HTTP" if method == "_OTHER" else method, template)))
        attributes = _attributes(scope, headers, trace, method, template, status)
        return self._record(trace, name, headers, attributes, failed=status >= 500 or not status)

    def record_call(
        self, trace: Trace, method: str, known: bool, status: str, headers: Mapping[str, str], client: str | None
    ) -> str:
        """The same for a call of gRPC: its method as `Service/Method`, whether that exists, and its status' name."""
        failed = status in _FAILED_CALLS
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": method if known else "_OTHER",
            "rpc.method_original": None if known else method[:_MAX_TEXT],
            "rpc.response.status_code": status,
            "client.address": client,
            "user_agent.original": headers.get("user-agent", "")[:_MAX_TEXT] or None,
            "error.type": status if failed else None,
        }
        name = method if known else "grpc"
        return self._record(trace, name, headers, {**_given(attributes), **_ours(trace)}, failed=failed)

    def _record(
        self,
        trace: Trace,
        name: str,
        headers: Mapping[str, str],
        attributes: Mapping[str, str | int],
        *,
        failed: bool,
    ) -> str:
        ended_ns, ended = time.time_ns(), time.monotonic()

        def wall_ns(instant: float) -> int:
            return ended_ns - round((ended - instant) * 1e9)

        span = self._tracer.start_span(
            name,
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=wall_ns(trace.begun),
        )
        if span.is_recording():
            if failed:
                span.set_status(Status(StatusCode.ERROR))
            inside = set_span_in_context(span)
            for stage, begun, over in trace.intervals or ():
                self._tracer.start_span(stage, inside, start_time=wall_ns(begun)).end(wall_ns(over))
        span.end(ended_ns)
        return format_trace_id(span.get_span_context().trace_id)

    async def close(self) -> None:
        """Send what is left, for at most `FLUSH_S`."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_S)


def _attributes(
    scope: Scope, headers: Headers, trace: Trace, method: str, route: str | None, status: int
) -> dict[str, str | int]:
    """The span's attributes; the semantic conventions say which, those of `signet` are ours."""
    client, server = scope.get("client") or (None, None), scope.get("server") or (None, None)
    known: dict[str, str | int | None] = {
        "http.request.method": method,
        "http.request.method_original": scope["method"][:_MAX_TEXT] if method == "_OTHER" else None,
        "http.response.status_code": status or None,
        "http.route": route,
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"][:_MAX_TEXT],
        "url.query": scope.get("query_string", b"").decode("latin-1")[:_MAX_TEXT] or None,
        "network.protocol.version": scope.get("http_version"),
        "client.address": client[0],
        "client.port": client[1],
        "server.address": server[0],
        "server.port": server[1],
        "user_agent.original": headers.get("user-agent", "")[:_MAX_TEXT] or None,
        "error.type": (trace.problem or str(status or "aborted")) if status >= 500 or not status else None,
    }
    return {**_given(known), **_ours(trace)}


def _ours(trace: Trace) -> dict[str, str | int]:
    known = {
        "signet.request_id": trace.request_id,
        "signet.model": trace.model or None,
        "signet.model.version": trace.version or None,
        "signet.problem": trace.problem,
    }
    return _given(known)


def _given(known: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in known.items() if value is not None}
