"""gRPC: keys, limits, deadlines, calls given up, the orderly end, several workers, and that it is off by default."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.helpers import packed, pictures
from tests.helpers.rpc import METHOD, connection, head, message, received
from tests.helpers.server import Server, eventually, free_port

PIXELS = pictures.random_pixels(32, 32)[None]
PNG = pictures.png(32, 32)
ONE_AT_A_TIME = {"parallel_images": 1, "threads": 1}
INFER = METHOD + "ModelInfer"


class Rpc:
    """A service that speaks gRPC too, and a client of it."""

    def __init__(self, models: Path, **settings: object) -> None:
        self.port = free_port()
        self.server = Server(models, grpc_port=self.port, **settings)
        self.client = triton.InferenceServerClient(f"127.0.0.1:{self.port}")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def infer(self, model: str = "slow", files: list[bytes] | None = None, **options: Any) -> str:
        """Ask about encoded pictures: the name of the status."""
        try:
            self.client.infer(model, [encoded(*(files or [PNG]))], **options)
        except InferenceServerException as error:
            return str(error.status()).removeprefix("StatusCode.")
        return "OK"

    def many(self, count: int, **options: Any) -> Counter[str]:
        """The same by several clients at once."""
        with ThreadPoolExecutor(count) as clients:
            return Counter(clients.map(lambda _: self.infer(**options), range(count)))

    @contextmanager
    def occupied(self, images: int) -> Iterator[None]:
        """Have the engine compute a batch of so many images, which is answered at the end of the block."""
        with ThreadPoolExecutor(1) as clients:
            first = clients.submit(self.infer, files=[PNG] * images)
            eventually(lambda: self.server.metric("signet_queue_images") == images)
            yield
            assert first.result() == "OK"

    @contextmanager
    def waiting(self, count: int) -> Iterator[None]:
        """Have so many calls wait in the queue, which are cancelled at the end of the block."""
        before = self.server.metric("signet_queue_images")
        calls = [self.stub.ModelInfer.future(slow_request()) for _ in range(count)]
        eventually(lambda: self.server.metric("signet_queue_images") == before + count)
        yield
        for call in calls:
            call.cancel()
        eventually(lambda: self.server.metric("signet_queue_images") == before)

    @property
    def accepted(self) -> float:
        """Calls to infer that are or were in progress."""
        answered = self.server.metric("signet_requests_total", route=INFER)
        return answered + self.server.metric("signet_in_flight") - 1

    def rejected(self, reason: str) -> float:
        return self.server.metric("signet_rejected_total", reason=reason)

    def close(self) -> None:
        self.client.close()
        self.channel.close()
        self.server.close()


def encoded(*files: bytes) -> triton.InferInput:
    return triton.InferInput("image", [len(files)], "BYTES").set_data_from_numpy(np.array(files, np.object_))


def slow_request() -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="slow")
    request.inputs.add(name="image", datatype="BYTES", shape=[1], contents={"bytes_contents": [PNG]})
    return request


# ---- keys and rates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(zoo: Path) -> Iterator[Rpc]:
    running = Rpc(zoo, api_keys="alpha, beta", admin_keys="root")
    yield running
    running.close()


@pytest.mark.parametrize("headers", [{"x-api-key": "alpha"}, {"authorization": "Bearer beta"}, {"x-api-key": "root"}])
def test_every_key_opens(guarded: Rpc, headers: dict[str, str]) -> None:
    assert guarded.infer("random", headers=headers) == "OK"
    assert guarded.client.get_model_metadata("random", headers=headers).name == "random"


@pytest.mark.parametrize(
    "headers",
    [None, {"x-api-key": "gamma"}, {"x-api-key": ""}, {"authorization": "alpha"}, {"authorization": "Basic YWxwaGE6"}],
)
def test_without_a_valid_key_a_call_is_unauthenticated(guarded: Rpc, headers: dict[str, str] | None) -> None:
    before = guarded.rejected("unauthorized")
    assert guarded.infer("random", headers=headers) == "UNAUTHENTICATED"
    with pytest.raises(InferenceServerException, match="valid key") as raised:
        guarded.client.load_model("random", headers=headers)
    assert raised.value.status() == "StatusCode.UNAUTHENTICATED"
    eventually(lambda: guarded.rejected("unauthorized") == before + 2)


def test_a_message_is_not_read_without_a_key(guarded: Rpc) -> None:
    with connection(guarded.port) as sock:
        sock.sendall(head("ModelInfer"))
        assert b"Send a valid key" in received(sock)


def test_a_client_is_no_admin(guarded: Rpc) -> None:
    with pytest.raises(InferenceServerException, match="admin key") as raised:
        guarded.client.unload_model("random", headers={"x-api-key": "alpha"})
    assert raised.value.status() == "StatusCode.PERMISSION_DENIED"
    assert guarded.infer("random", headers={"x-api-key": "alpha"}) == "OK"


def test_health_needs_no_key(guarded: Rpc) -> None:
    assert guarded.client.is_server_live()
    assert guarded.client.is_server_ready()
    with pytest.raises(InferenceServerException, match="valid key"):
        guarded.client.is_model_ready("random")


def test_the_rate_limit_is_one_for_both_protocols(zoo: Path) -> None:
    running = Rpc(zoo, api_keys="alpha", rate_limit_per_s=1 / 600, rate_limit_burst=4)
    try:
        key = {"x-api-key": "alpha"}
        assert [running.server.client.get("/v1/models", headers=key).status_code for _ in range(2)] == [200, 200]
        statuses = [running.infer("random", headers=key) for _ in range(4)]
        assert statuses == ["OK", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]
        assert running.server.client.get("/v1/models", headers=key).status_code == 429
        assert running.client.is_server_live()
        with pytest.raises(grpc.RpcError) as raised:
            running.stub.ModelInfer(slow_request(), metadata=tuple(key.items()))
        trailing = dict(raised.value.trailing_metadata())
        assert trailing["x-problem"] == "rate-limited"
        assert 0 < int(trailing["retry-after"]) <= 600
        assert int(trailing["grpc-retry-pushback-ms"]) == 1000 * int(trailing["retry-after"])
    finally:
        running.close()


# ---- the queue, deadlines, clients that leave ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(slow_zoo: Path) -> Iterator[Rpc]:
    """A service that computes one image at a time and admits twenty."""
    running = Rpc(slow_zoo, max_queue_images=20, **ONE_AT_A_TIME)
    yield running
    running.close()


def counted(server: Server) -> Callable[[], dict[str, float]]:
    """A function that tells what has been counted since now, once nothing is in progress."""

    def now() -> dict[str, float]:
        eventually(lambda: server.metric("signet_in_flight") == 1)
        assert server.metric("signet_queue_images") == 0
        found = {"images": server.metric("signet_images_total", model="slow")}
        for reason in ("queue-full", "deadline", "client-gone"):
            found[reason] = server.metric("signet_rejected_total", reason=reason)
        for status in ("429", "499", "504"):
            found[status] = server.metric("signet_requests_total", route=INFER, status=status)
        return found

    before = now()
    return lambda: {name: value - before[name] for name, value in now().items() if value != before[name]}


def test_a_full_queue_is_told_at_once(narrow: Rpc) -> None:
    since = counted(narrow.server)
    with narrow.occupied(16), narrow.waiting(4):
        assert narrow.many(4) == {"RESOURCE_EXHAUSTED": 4}
        with pytest.raises(grpc.RpcError, match="at most 20 are admitted") as raised:
            narrow.stub.ModelInfer(slow_request())
        assert dict(raised.value.trailing_metadata())["x-problem"] == "queue-full"
        with connection(narrow.port) as unread:
            unread.sendall(head("ModelInfer"))
            assert b"at most 20 are admitted" in received(unread)
        assert narrow.client.get_model_metadata("slow").name == "slow"
    assert since() == {"images": 16, "queue-full": 6, "429": 6, "client-gone": 4, "499": 4}


def test_a_deadline_that_passes_in_the_queue_is_told_uncomputed(slow_zoo: Path, answer_s: float) -> None:
    running = Rpc(slow_zoo, queue_deadline_ms=max(1, int(answer_s * 3000)), **ONE_AT_A_TIME)
    try:
        with running.occupied(16):
            statuses = running.many(4)
        assert statuses["DEADLINE_EXCEEDED"] >= 1
        assert set(statuses) <= {"DEADLINE_EXCEEDED", "OK"}  # where the machine is faster than it was before
        eventually(lambda: running.rejected("deadline") == statuses["DEADLINE_EXCEEDED"])
        assert running.server.metric("signet_images_total", model="slow") == 16 + statuses["OK"]
        assert running.infer() == "OK"
    finally:
        running.close()


@pytest.mark.parametrize("how", ["client_timeout", "timeout"])
def test_a_call_whose_own_time_is_over_is_not_computed(narrow: Rpc, answer_s: float, how: str) -> None:
    """gRPC's deadline, and Triton's parameter `timeout`, of calls behind sixteen pictures."""
    limit = {how: 2 * answer_s if how == "client_timeout" else int(2e6 * answer_s)}
    since = counted(narrow.server)
    with narrow.occupied(16):
        statuses = narrow.many(4, **limit)
    assert statuses["DEADLINE_EXCEEDED"] >= 1
    assert set(statuses) <= {"DEADLINE_EXCEEDED", "OK"}
    found = since()
    assert found["images"] == 16 + statuses["OK"]
    assert found.get("deadline", 0) == found.get("504", 0)
    assert found.get("deadline", 0) <= statuses["DEADLINE_EXCEEDED"]  # the time may be over before a call has left
    assert "client-gone" not in found


def test_a_cancelled_call_costs_nothing_more(narrow: Rpc) -> None:
    since = counted(narrow.server)
    with narrow.occupied(8), narrow.waiting(5):
        pass
    assert since() == {"images": 8, "client-gone": 5, "499": 5}
    assert narrow.infer() == "OK"


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(zoo: Path) -> Iterator[Rpc]:
    """A service with small limits."""
    limits = {"max_body_bytes": 1 << 20, "max_buffered_bytes": 4 << 20, "max_header_bytes": 4096}
    running = Rpc(zoo, body_timeout_s=1, header_timeout_s=1, **limits)
    yield running
    running.close()


def test_a_message_that_is_too_large_is_refused_unread(small: Rpc) -> None:
    before = small.rejected("body-too-large")
    with pytest.raises(InferenceServerException, match="larger than max") as raised:
        small.client.infer("random", [encoded(bytes(1 << 20))])
    assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    eventually(lambda: small.rejected("body-too-large") == before + 1)
    with connection(small.port) as sock:
        sock.sendall(head("ModelInfer") + message(b"begun", length=(1 << 20) + 1, ends=False))
        assert b"larger than max" in received(sock)
    eventually(lambda: small.server.metric("signet_in_flight") == 1)


def test_a_compressed_bomb_leaves_memory_flat(small: Rpc) -> None:
    assert small.infer("random") == "OK"
    before = small.server.rss_bytes
    peak = psutil.Process(small.server.process.pid).memory_info().rss
    bomb = service_pb2.ModelInferRequest(model_name="random", raw_input_contents=[bytes(64 << 20)])
    for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with pytest.raises(grpc.RpcError, match="larger than max") as raised:
            small.stub.ModelInfer(bomb, compression=algorithm)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = Path(f"/proc/{small.server.process.pid}/status")
    if status.exists():
        peak = 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak - before < 32 << 20


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (message(b"\x0a\xff\xff\xff\xff\x0f"), b"no sound ModelInferRequest"),
        (message(b"\x0a\x02\xff\xfe"), b"no sound ModelInferRequest"),
        (message(b"", length=0), b"There is no model"),
        (message(b"abc", length=500), b"without a whole message"),
    ],
    ids=["field beyond the end", "text that is not UTF-8", "empty message", "shorter than it claims"],
)
def test_messages_that_make_no_sense(small: Rpc, sent: bytes, told: bytes) -> None:
    with connection(small.port) as sock:
        sock.sendall(head("ModelInfer") + sent)
        assert told in received(sock)


def test_a_call_without_a_message(small: Rpc) -> None:
    empty = small.channel.stream_unary(INFER)
    with pytest.raises(grpc.RpcError, match="without a whole message") as raised:
        empty(iter(()))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_comes_too_slowly_is_cut_off_and_others_are_not(small: Rpc) -> None:
    before = small.rejected("timeout")
    with connection(small.port) as slow, connection(small.port) as silent:
        slow.sendall(head("ModelInfer") + message(b"begun", length=1000, ends=False))
        silent.sendall(head("ModelInfer"))
        assert small.infer("random") == "OK"
        for sock in (slow, silent):
            assert b"did not arrive in 1 s" in received(sock)
        eventually(lambda: small.rejected("timeout") == before + 2)
    assert small.infer("random") == "OK"
    eventually(lambda: small.server.metric("signet_in_flight") == 1)


def test_more_slow_messages_than_may_be_on_their_way_hold_up_nobody_for_long(small: Rpc) -> None:
    """Four may be (4 MiB of 1 MiB each); the fifth waits until the first are cut off."""
    with (
        connection(small.port) as one,
        connection(small.port) as two,
        connection(small.port) as three,
        connection(small.port) as four,
    ):
        for sock in (one, two, three, four):
            sock.sendall(head("ModelInfer") + message(b"begun", length=1000, ends=False))
        eventually(lambda: small.server.metric("signet_in_flight") == 5)
        assert small.infer("random") in ("OK", "RESOURCE_EXHAUSTED")
    assert small.infer("random") == "OK"


def test_a_client_that_vanishes_within_its_message(small: Rpc) -> None:
    for _ in range(5):
        with connection(small.port) as sock:
            sock.sendall(head("ModelInfer") + message(b"begun", length=1000, ends=False))
    assert small.infer("random") == "OK"
    eventually(lambda: small.server.metric("signet_in_flight") == 1)


@pytest.mark.parametrize("begun", [b"", b"PRI * HTTP/2.0\r\n"], ids=["nothing", "half a preface"])
def test_who_connects_and_says_nothing_is_closed(small: Rpc, begun: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=60) as sock:
        sock.sendall(begun)
        assert small.infer("random") == "OK"
        while sock.recv(65536):
            pass


def test_metadata_are_limited(small: Rpc) -> None:
    with pytest.raises(InferenceServerException, match="metadata size") as raised:
        small.client.get_server_metadata(headers={"x-api-key": "a" * 10_000})
    assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert small.client.get_server_metadata(headers={"x-api-key": "a" * 3000}).name == "signet"


def test_bodies_in_memory_are_bounded_over_both_protocols(slow_zoo: Path) -> None:
    running = Rpc(slow_zoo, max_buffered_bytes=3 << 20, max_body_bytes=2 << 20, body_timeout_s=10)
    try:
        with running.server.connection() as upload:
            upload.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + bytes(1900000))
            eventually(lambda: running.infer(files=[bytes(1500000)]) == "RESOURCE_EXHAUSTED")
            eventually(lambda: running.rejected("queue-full") >= 1)
        eventually(lambda: running.infer() == "OK")
    finally:
        running.close()


def test_what_is_no_http2_is_closed_and_harms_nobody(small: Rpc) -> None:
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        os.urandom(5000),
    ):
        with socket.create_connection(("127.0.0.1", small.port), timeout=60) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    assert small.infer("random") == "OK"


# ---- beginning and end -----------------------------------------------------------------------------------------------


def test_a_signal_under_load_leaves_no_accepted_call_unanswered(slow_zoo: Path) -> None:
    running = Rpc(slow_zoo, **ONE_AT_A_TIME)
    try:
        with ThreadPoolExecutor(6) as clients:
            pending = [clients.submit(running.infer) for _ in range(6)]
            eventually(lambda: running.accepted >= 6)
            running.server.process.send_signal(signal.SIGTERM)
            assert {call.result() for call in pending} == {"OK"}
        assert running.server.process.wait(20) == 0
        assert running.server.log_events()[-1]["event"].startswith("Finished server process")
    finally:
        running.close()


def test_while_draining_new_calls_are_unavailable(slow_zoo: Path) -> None:
    running = Rpc(slow_zoo, drain_delay_s=2, body_timeout_s=10)
    try:
        assert running.infer() == "OK"
        with connection(running.port) as accepted:
            accepted.sendall(head("ServerReady"))
            accepted.sendall(head("ModelReady").replace(b"\0\0\0\1", b"\0\0\0\3", 1))
            eventually(lambda: running.server.metric("signet_in_flight") == 3)
            running.server.process.send_signal(signal.SIGTERM)
            eventually(lambda: any(event["event"] == "draining" for event in running.server.log_events()))
            assert running.infer() == "UNAVAILABLE"
            assert running.client.is_server_live()
            assert not running.client.is_server_ready()
            assert running.server.exchange(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").status == 503
            with pytest.raises(grpc.RpcError) as raised:
                running.stub.ModelInfer(slow_request())
            assert dict(raised.value.trailing_metadata())["x-problem"] == "draining"
            accepted.sendall(message(b""))
            assert b"grpc-status" in received(accepted)
        assert running.server.process.wait(30) == 0
    finally:
        running.close()


def test_a_second_signal_ends_it_at_once(slow_zoo: Path) -> None:
    running = Rpc(slow_zoo, drain_timeout_s=60, body_timeout_s=60, keep_alive_s=120)
    try:
        with connection(running.port) as endless:
            endless.sendall(head("ModelInfer"))
            eventually(lambda: running.server.metric("signet_in_flight") == 2)
            running.server.process.send_signal(signal.SIGTERM)
            eventually(lambda: any(event["event"] == "draining" for event in running.server.log_events()))
            running.server.process.send_signal(signal.SIGTERM)
            assert running.server.process.wait(30) == 0
    finally:
        running.close()


def test_a_call_that_never_ends_is_told_when_the_drain_time_is_over(slow_zoo: Path) -> None:
    running = Rpc(slow_zoo, drain_timeout_s=2, body_timeout_s=60)
    try:
        with connection(running.port) as endless:
            endless.sendall(head("ModelInfer"))
            eventually(lambda: running.server.metric("signet_in_flight") == 2)
            begun = time.monotonic()
            assert running.server.stop() == 0
            assert time.monotonic() - begun > 1.5
            assert b"The service ended before" in received(endless)
    finally:
        running.close()


def test_it_is_off_by_default(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    listening = [c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == [server.port]
    maps = Path(f"/proc/{process.pid}/maps")
    if maps.exists():
        assert "cygrpc" not in maps.read_text()


def test_the_application_does_not_import_it() -> None:
    program = (
        "import sys, app.main, app.server; print([name for name in sys.modules if 'grpc' in name or 'rpc' in name])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == "[]"


def test_without_the_extra_it_says_what_to_install(zoo: Path) -> None:
    program = "import sys; sys.modules['grpc'] = None; from app.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--grpc-port", "0", "--models", str(zoo)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "gRPC needs the package 'grpc'" in ended.stderr
    assert "pip install 'signet[grpc]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_is_not_offered_on_a_ray_cluster() -> None:
    command = [sys.executable, "-m", "app.cli", "serve", "--ray", "--grpc-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "not served on a Ray cluster" in ended.stderr


def test_a_port_in_use_is_a_clear_failure(zoo: Path) -> None:
    """By a socket that shares its port with whoever asks to, too."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--grpc-port", str(port)]
        command += ["--workers", "2", "--models", str(zoo)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert f"gRPC cannot listen on 127.0.0.1:{port}: " in ended.stderr
    assert "address already in use" in ended.stderr.lower()


# ---- several workers -------------------------------------------------------------------------------------------------


def afresh(port: int) -> str:
    """The status of a call over a connection of its own, which any worker may take."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with triton.InferenceServerClient(f"127.0.0.1:{port}", channel_args=options) as client:
        try:
            client.infer("net", [triton.InferInput("image", [1, 32, 32, 3], "UINT8").set_data_from_numpy(PIXELS)])
        except InferenceServerException as error:
            return str(error.status()).removeprefix("StatusCode.")
    return "OK"


def test_workers_share_a_port_and_are_one_service(tmp_path: Path) -> None:
    path = tmp_path / "net" / "1" / "model.safetensors"
    packed.write_random(path, seed=1)
    server = Server(tmp_path, workers=2, admin_keys="root", grpc_port=0)
    admin = {"x-api-key": "root"}

    def statuses(times: int = 24) -> Counter[str]:
        with ThreadPoolExecutor(8) as clients:
            return Counter(clients.map(lambda _: afresh(port), range(times)))

    try:
        eventually(lambda: server.metric("signet_workers") == 2)
        told = [event["event"] for event in server.log_events() if event["event"].startswith("gRPC running on ")]
        assert len(told) == 2
        (address,) = {event.removeprefix("gRPC running on ") for event in told}
        port = int(address.rpartition(":")[2])
        workers = psutil.Process(server.process.pid).children()
        listening = [{c.laddr.port for c in worker.net_connections() if c.status == "LISTEN"} for worker in workers]
        assert [port in ports for ports in listening] == [True, True]

        assert statuses() == {"OK": 24}
        eventually(lambda: server.metric("signet_requests_total", route=INFER, status="200") == 24)
        with triton.InferenceServerClient(address) as client:
            client.unload_model("net", headers=admin)
            assert statuses() == {"UNAVAILABLE": 24}
            client.load_model("net", headers=admin)
            assert statuses() == {"OK": 24}
            assert client.get_inference_statistics("net").model_stats[0].inference_count == 48
            path.with_name("aside").write_bytes(path.read_bytes()[:-100])
            path.with_name("aside").replace(path)
            with pytest.raises(InferenceServerException, match="Version 1: ") as raised:
                client.load_model("net", headers=admin)
            assert raised.value.status() == "StatusCode.FAILED_PRECONDITION"
            assert statuses() == {"OK": 24}
        packed.write_random(path, seed=1)

        workers[0].kill()
        eventually(lambda: workers[0].pid not in [each.pid for each in psutil.Process(server.process.pid).children()])
        eventually(lambda: server.metric("signet_workers") == 2)
        assert statuses() == {"OK": 24}
    finally:
        server.close()


def test_workers_drain(slow_zoo: Path) -> None:
    running = Rpc(slow_zoo, workers=2, threads=1)
    try:
        eventually(lambda: running.server.metric("signet_workers") == 2)
        with ThreadPoolExecutor(4) as clients:
            pending = [clients.submit(running.infer) for _ in range(4)]
            eventually(lambda: running.accepted >= 4)
            running.server.process.send_signal(signal.SIGTERM)
            assert {call.result() for call in pending} == {"OK"}
        assert running.server.process.wait(30) == 0
    finally:
        running.close()
