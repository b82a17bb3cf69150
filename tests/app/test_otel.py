"""Traces for OpenTelemetry, as a collector gets them over OTLP/HTTP."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tritonclient.grpc import service_pb2

from tests.app.test_cli import signet
from tests.helpers import pictures
from tests.helpers.rpc import METHOD
from tests.helpers.server import Server, eventually, free_port

PNG = pictures.png(32, 32)
LARGE = pictures.jpeg(2000, 2500)  # takes more than a millisecond to decode anywhere
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
WAY = ["queue", "decode", "preprocess", "queue", "infer", "postprocess"]


class Collector:
    """What OpenTelemetry sends its traces to; keeps what it got."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                collector.headers.append(dict(self.headers))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def spans(self) -> list[Span]:
        return [s for r in self.requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]

    @property
    def resource(self) -> dict[str, Any]:
        return attributes_of(self.requests[0].resource_spans[0].resource)

    def server_span(self, request_id: str) -> Span:
        """The span of a request, once it has arrived."""

        def found() -> list[Span]:
            return [span for span in self.spans if attributes_of(span).get("signet.request_id") == request_id]

        eventually(lambda: bool(found()))
        (span,) = found()
        return span

    def children(self, span: Span) -> list[Span]:
        return [other for other in self.spans if other.parent_span_id == span.span_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes_of(thing: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in thing.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def traced(zoo: Path, collector: Collector, grpc_port: int) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "tenant=vision")
        environment.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        running = Server(zoo, otel=True, default_model="random", max_queue_images=4, grpc_port=grpc_port)
    yield running
    running.close()


def test_a_request_is_a_span_under_its_callers_with_its_stages_below(traced: Server, collector: Collector) -> None:
    before = time.time_ns()
    reply = traced.client.post(
        "/v1/classify?top_k=2", content=PNG, headers={**TRACEPARENT, "tracestate": "a=b", "user-agent": "test/1"}
    )
    after = time.time_ns()
    assert reply.status_code == 200
    request_id = reply.headers["x-request-id"]
    span = collector.server_span(request_id)
    assert span.name == "POST /v1/classify"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.trace_state == "a=b"
    assert span.status.code == Status.STATUS_CODE_UNSET
    client_port = attributes_of(span)["client.port"]
    assert attributes_of(span) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/classify",
        "url.scheme": "http",
        "url.path": "/v1/classify",
        "url.query": "top_k=2",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "client.port": client_port,
        "server.address": "127.0.0.1",
        "server.port": traced.port,
        "user_agent.original": "test/1",
        "signet.request_id": request_id,
        "signet.model": "random",
        "signet.model.version": "2",
    }
    children = sorted(collector.children(span), key=lambda child: child.start_time_unix_nano)
    assert sorted(child.name for child in children) == sorted(WAY)
    assert [child.name for child in children if child.name != "queue"] == [name for name in WAY if name != "queue"]
    for child in children:
        assert child.trace_id == span.trace_id
        assert child.kind == Span.SPAN_KIND_INTERNAL
        assert span.start_time_unix_nano <= child.start_time_unix_nano
        assert child.start_time_unix_nano <= child.end_time_unix_nano <= span.end_time_unix_nano
    slack_ns = 50_000_000  # two clocks are read one after the other
    assert before - slack_ns <= span.start_time_unix_nano < span.end_time_unix_nano <= after + 10 * slack_ns
    took_ms = reply.json()["timing_ms"]
    for name in ("decode", "infer"):
        (child,) = [child for child in children if child.name == name]
        child_ms = (child.end_time_unix_nano - child.start_time_unix_nano) / 1e6
        assert child_ms == pytest.approx(took_ms[name], abs=0.01)


def test_what_opentelemetrys_variables_say_is_done(traced: Server, collector: Collector) -> None:
    collector.server_span(traced.client.get("/v1/models").headers["x-request-id"])
    assert collector.resource["service.name"] == "signet"
    assert collector.resource["service.version"]
    assert collector.resource["deployment.environment.name"] == "test"
    assert all(headers["tenant"] == "vision" for headers in collector.headers)
    assert all(headers["Content-Encoding"] == "gzip" for headers in collector.headers)


@pytest.mark.parametrize(
    ("path", "options", "status", "name", "problem"),
    [
        ("/v1/classify", {"content": b"no picture"}, 415, "POST /v1/classify", "not-an-image"),
        ("/v1/classify?model=nobody", {"content": PNG}, 404, "POST /v1/classify", "unknown-model"),
        ("/v1/classify?top_k=x", {"content": PNG}, 422, "POST /v1/classify", "invalid-parameter"),
        ("/no/such/path", {"content": PNG}, 404, "POST", "not-found"),
        ("/v1/classify/batch", {"files": [("image", PNG)] * 5}, 413, "POST /v1/classify/batch", "batch-too-large"),
    ],
)
def test_a_refusal_is_no_error_of_ours(
    traced: Server, collector: Collector, path: str, options: dict[str, Any], status: int, name: str, problem: str
) -> None:
    reply = traced.client.post(path, **options)
    assert reply.status_code == status
    span = collector.server_span(reply.headers["x-request-id"])
    found = attributes_of(span)
    assert span.name == name
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert (found["http.response.status_code"], found["signet.problem"]) == (status, problem)
    assert "error.type" not in found
    assert found.get("http.route") == name.partition(" ")[2] or "http.route" not in found
    assert span.parent_span_id == b""


def test_calls_of_grpc_are_spans_too(traced: Server, collector: Collector, grpc_port: int) -> None:
    asked = service_pb2.ModelInferRequest(model_name="random")
    asked.inputs.add(name="image", datatype="BYTES", shape=[1], contents={"bytes_contents": [PNG]})
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        infer = channel.unary_unary(METHOD + "ModelInfer", service_pb2.ModelInferRequest.SerializeToString)
        _, call = infer.with_call(asked, metadata=tuple(TRACEPARENT.items()))
        refused = infer.future(service_pb2.ModelInferRequest(model_name="nobody"))
        unknown = channel.unary_unary(METHOD + "TraceSetting").future(b"")
        ids = [dict(each.trailing_metadata())["x-request-id"] for each in (call, refused, unknown)]
    answered, not_found, not_there = (collector.server_span(request_id) for request_id in ids)
    assert answered.name == "inference.GRPCInferenceService/ModelInfer"
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    found = attributes_of(answered)
    assert "grpc-python" in found.pop("user_agent.original")
    assert found == {
        "rpc.system.name": "grpc",
        "rpc.method": answered.name,
        "rpc.response.status_code": "OK",
        "client.address": "127.0.0.1",
        "signet.request_id": ids[0],
        "signet.model": "random",
        "signet.model.version": "2",
    }
    assert sorted(child.name for child in collector.children(answered)) == sorted(WAY)
    assert not_found.status.code == Status.STATUS_CODE_UNSET
    assert attributes_of(not_found)["rpc.response.status_code"] == "NOT_FOUND"
    assert not_there.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(not_there)["rpc.method"] == "_OTHER"
    (event,) = [event for event in traced.log_events() if event.get("request_id") == ids[0]]
    assert event["trace_id"] == TRACE_ID


def test_a_deadline_is_an_error_and_shows_the_wait(traced: Server, collector: Collector) -> None:
    reply = traced.classify(LARGE, timeout_ms=1)
    assert reply.status_code == 504
    span = collector.server_span(reply.headers["x-request-id"])
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(span)["error.type"] == "deadline"
    assert attributes_of(span)["http.response.status_code"] == 504
    names = {child.name for child in collector.children(span)}
    assert "queue" in names
    assert "infer" not in names


def test_an_unavailable_model_is_an_error(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "eyes")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    running = Server(tmp_path, otel=True)
    try:
        reply = running.classify(PNG)
        assert reply.status_code == 503
        assert running.stop() == 0  # what is left is sent before the end
        span = collector.server_span(reply.headers["x-request-id"])
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert attributes_of(span)["error.type"] == "model-unavailable"
        assert attributes_of(collector.requests[-1].resource_spans[0].resource)["service.name"] == "eyes"
    finally:
        running.close()


def test_every_picture_of_a_batch_has_its_stages(traced: Server, collector: Collector) -> None:
    reply = traced.client.post("/v1/classify/batch", files=[("image", PNG)] * 3)
    assert reply.status_code == 200
    children = collector.children(collector.server_span(reply.headers["x-request-id"]))
    names = [child.name for child in children]
    assert {name: names.count(name) for name in set(names)} == {
        "decode": 3,
        "preprocess": 3,
        "queue": 2,
        "infer": 1,
        "postprocess": 1,
    }


def test_the_log_names_the_trace_and_watchers_leave_no_span(traced: Server, collector: Collector) -> None:
    traced.client.get("/livez")
    traced.client.get("/metrics")
    reply = traced.classify(PNG)
    span = collector.server_span(reply.headers["x-request-id"])

    def lines() -> list[dict[str, Any]]:
        return [event for event in traced.log_events() if event.get("request_id") == reply.headers["x-request-id"]]

    eventually(lambda: bool(lines()))
    assert lines()[0]["trace_id"] == span.trace_id.hex()
    assert not [span for span in collector.spans if attributes_of(span).get("url.path") in ("/livez", "/metrics")]


@pytest.mark.parametrize("value", ["nonsense", "00-0-0-01", "\xff", "00-" + "f" * 9000 + "-1-01"])
def test_a_traceparent_that_is_none_is_left_alone(traced: Server, collector: Collector, value: str) -> None:
    reply = traced.client.get("/v1/models", headers={"traceparent": value.encode("latin-1")})
    assert reply.status_code == 200
    assert collector.server_span(reply.headers["x-request-id"]).parent_span_id == b""


def test_who_is_not_sampled_leaves_no_span(traced: Server, collector: Collector) -> None:
    unsampled = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
    left_out = traced.client.get("/v1/models", headers=unsampled).headers["x-request-id"]
    collector.server_span(traced.client.get("/v1/models").headers["x-request-id"])
    assert not [span for span in collector.spans if attributes_of(span).get("signet.request_id") == left_out]


def test_workers_send_their_spans(zoo: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    running = Server(zoo, otel=True, workers=2)
    try:
        for _ in range(6):
            reply = httpx.get(f"http://127.0.0.1:{running.port}/v1/models", timeout=60)
            assert collector.server_span(reply.headers["x-request-id"]).name == "GET /v1/models"
    finally:
        running.close()


def test_without_a_collector_requests_are_answered_and_the_end_is_soon(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    running = Server(zoo, otel=True)
    try:
        assert running.classify(PNG, model="colour").status_code == 200
        assert running.stop(timeout_s=60) == 0
    finally:
        running.close()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(zoo: Path, variable: str, value: str) -> None:
    ended = signet("serve", "--models", zoo, "--port", "0", SIGNET_OTEL="true", **{variable: value})
    assert ended.returncode == 2
    assert variable in ended.stderr
    assert value in ended.stderr


def test_without_the_extra_the_start_says_what_to_install(zoo: Path) -> None:
    ended = signet("serve", "--models", zoo, "--port", "0", without="opentelemetry.sdk", SIGNET_OTEL="true")
    assert ended.returncode == 2
    assert "pip install 'signet[otel]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_when_it_is_off_nothing_of_it_is_imported(zoo: Path) -> None:
    program = (
        "import sys, app.cli, app.server, app.main\n"
        "from app.settings import Settings\n"
        "app.main.create_app(Settings(models=(sys.argv[1],)))\n"
        "ours = ('opentelemetry.sdk', 'opentelemetry.exporter', 'google.protobuf', 'requests', 'app.otel')\n"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(zoo)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.strip() == "[]"
