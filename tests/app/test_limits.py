"""Admission, deadlines, clients that leave, and the orderly end, with a model that is slow on purpose."""

from __future__ import annotations

import gzip
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.middleware import computing_route
from tests.helpers import pictures
from tests.helpers.requests import request
from tests.helpers.server import Reply, Server, eventually, read_reply

PNG = pictures.png(32, 32)
ONE_AT_A_TIME = {"parallel_images": 1, "threads": 1}


@pytest.fixture
def narrow(slow_zoo: Path) -> Iterator[Server]:
    """A service that admits two images."""
    running = Server(slow_zoo, max_queue_images=2, **ONE_AT_A_TIME)
    yield running
    running.close()


def test_a_full_queue_answers_429_at_once(narrow: Server, answer_s: float) -> None:
    replies = until_both(lambda: narrow.classify(PNG), 200, 429)
    statuses = Counter(reply.status_code for reply in replies)
    for reply in replies:
        if reply.status_code == 429:
            assert reply.json()["type"].endswith("queue-full")
            assert int(reply.headers["retry-after"]) >= 1
    eventually(lambda: narrow.metric("signet_rejected_total", reason="queue-full") == statuses[429])
    assert narrow.metric("signet_queue_images") == 0
    assert narrow.classify(PNG).status_code == 200


def until_both(ask: Callable[[], httpx.Response], *wanted: int) -> list[httpx.Response]:
    """The answers to many requests at once, of which each has a wanted status, once all of these have been seen."""
    replies: list[httpx.Response] = []
    end = time.monotonic() + 60
    with ThreadPoolExecutor(8) as clients:
        while {reply.status_code for reply in replies} != set(wanted):
            assert time.monotonic() < end, Counter(reply.status_code for reply in replies)
            replies += clients.map(lambda _: ask(), range(8))
            assert {reply.status_code for reply in replies} <= set(wanted)
    return replies


def classify_many(running: Server, pictures_: int) -> httpx.Response:
    """One request that keeps a thread busy for as long as so many answers take."""
    return running.client.post("/v1/classify/batch", files=[("image", PNG)] * pictures_)


def answered(running: Server, route: str) -> float:
    """Requests to a route that have got their answer."""
    return running.metric("signet_requests_total", route=route, status="200")


@contextmanager
def kept_full(running: Server) -> Iterator[None]:
    """More clients than there are places ask again and again."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            httpx.post(f"http://127.0.0.1:{running.port}/v1/classify", content=PNG, timeout=60)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def refused(running: Server, message: bytes, then: bytes = b"") -> tuple[Reply, Reply | None]:
    """The first 429 to a request, and the answer to another one over the same connection."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with running.connection() as sock:
            sock.sendall(message)
            reply = read_reply(sock)
            if reply.status == 429:
                sock.sendall(then)
                return reply, read_reply(sock) if then else None
    raise AssertionError("nothing was refused")


def test_a_full_service_refuses_what_would_wait_and_nothing_else(narrow: Server) -> None:
    with kept_full(narrow):
        reply, next_reply = refused(narrow, request(body=PNG), request("GET", "/v1/models"))
        assert "connection" not in reply.headers
        assert int(reply.headers["retry-after"]) >= 1
        assert next_reply is not None
        assert next_reply.status == 200, "its body is out of the way"

        reply, _ = refused(narrow, request("POST", "/v2/models/slow/infer", body=b"{}"))
        assert "images are in progress" in reply.json()["error"]

        head = request(length=8 << 20)  # the body is never sent
        reply, _ = refused(narrow, head)
        assert reply.headers["connection"] == "close"
        expecting = request(headers=[("Expect", "100-continue")], length=1000)
        reply, _ = refused(narrow, expecting)
        assert reply.headers["connection"] == "close"
    for route in ("/v1/classify", "/v2/models/{name}/infer"):
        eventually(lambda route=route: narrow.metric("signet_requests_total", route=route, status="429") >= 1)
    assert narrow.metric("signet_requests_total", route="unmatched", status="429") == 0
    assert narrow.metric("signet_queue_images") == 0


def test_the_routes_that_compute_are_known_before_there_is_a_route() -> None:
    """Against the application's own description: every POST that may find the queue full."""
    paths = {
        path: methods["post"]["responses"]
        for path, methods in create_app().openapi()["paths"].items()
        if "post" in methods
    }
    full = {path for path, responses in paths.items() if "429" in responses and "504" in responses}
    assert full
    for path in paths:
        concrete = path.replace("{name}", "a-name").replace("{version}", "3")
        assert computing_route("POST", concrete) == (path if path in full else None)
        assert computing_route("GET", concrete) is None


def test_a_deadline_that_passed_in_the_queue_answers_504_uncomputed(slow_zoo: Path, answer_s: float) -> None:
    running = Server(slow_zoo, queue_deadline_ms=max(1, int(answer_s * 500)), **ONE_AT_A_TIME)
    try:
        replies = until_both(lambda: running.classify(PNG), 200, 504)
        statuses = Counter(reply.status_code for reply in replies)
        late = next(reply for reply in replies if reply.status_code == 504)
        assert late.json()["type"].endswith("deadline")
        eventually(lambda: running.metric("signet_rejected_total", reason="deadline") == statuses[504])
        assert running.metric("signet_images_total", model="slow") == statuses[200]
    finally:
        running.close()


def test_people_wait_and_are_refused_as_images_are(slow_zoo: Path, answer_s: float) -> None:
    """Two people a request: with room for five some are refused, and those that waited too long are dropped."""
    boxes = "[[0,0,16,16],[8,8,16,16]]"
    running = Server(slow_zoo, max_queue_images=5, **ONE_AT_A_TIME)
    try:
        replies = until_both(lambda: running.pose(PNG, boxes=boxes), 200, 429)
        statuses = Counter(reply.status_code for reply in replies)
        assert running.metric("signet_images_total", model="slow-pose") == 2 * statuses[200]
        assert running.metric("signet_queue_images") == 0
    finally:
        running.close()
    running = Server(slow_zoo, queue_deadline_ms=max(1, int(answer_s * 1000)), **ONE_AT_A_TIME)
    try:
        replies = until_both(lambda: running.pose(PNG, boxes=boxes), 200, 504)
        statuses = Counter(reply.status_code for reply in replies)
        assert running.metric("signet_images_total", model="slow-pose") == 2 * statuses[200]
    finally:
        running.close()


def test_a_client_that_left_costs_nothing_more(slow_zoo: Path, answer_s: float) -> None:
    running = Server(slow_zoo, **ONE_AT_A_TIME)
    try:
        with ThreadPoolExecutor(1) as clients:
            first = clients.submit(classify_many, running, 16)
            eventually(lambda: running.metric("signet_queue_images") >= 16)
            for waiting in range(1, 6):
                with running.connection() as sock:
                    sock.sendall(request(body=PNG))
                    eventually(lambda: running.metric("signet_queue_images") != 16)
                eventually(
                    lambda waiting=waiting: running.metric("signet_rejected_total", reason="client-gone") == waiting
                )
            assert first.result().status_code == 200
        eventually(lambda: running.metric("signet_in_flight") == 1)
        assert running.metric("signet_queue_images") == 0
        assert running.metric("signet_images_total", model="slow") == 16
        assert running.classify(PNG).status_code == 200
    finally:
        running.close()


def test_bodies_in_memory_are_bounded_over_all_requests(slow_zoo: Path) -> None:
    running = Server(slow_zoo, max_buffered_bytes=3 << 20, max_body_bytes=2 << 20, body_timeout_s=60)
    try:
        with running.connection() as one, running.connection() as two:
            for sock in (one, two):
                sock.sendall(request(body=bytes(1 << 20), length=2 << 20))
            refused: list[httpx.Response] = []

            def is_refused() -> bool:
                refused.append(running.classify(bytes(3 << 19)))
                return refused[-1].status_code == 429

            eventually(is_refused)  # once both bodies have been read as far as they came
            assert refused[-1].headers["retry-after"] == "1"
        eventually(lambda: running.classify(PNG).status_code == 200)
    finally:
        running.close()


def test_compressed_bodies_count_as_what_they_become(zoo: Path) -> None:
    running = Server(zoo, max_buffered_bytes=3 << 20, max_body_bytes=2 << 20, body_timeout_s=60)
    small = gzip.compress(PNG + bytes((2 << 20) - len(PNG)))
    assert len(small) < 10_000

    def status() -> int:
        return running.client.post("/v1/classify", content=small, headers={"Content-Encoding": "gzip"}).status_code

    try:
        assert status() == 200
        with running.connection() as other:
            other.sendall(request(body=bytes(3 << 19), length=2 << 20))
            eventually(lambda: status() == 429)
        eventually(lambda: status() == 200)
    finally:
        running.close()


def test_while_draining_new_requests_get_503_and_accepted_ones_their_answer(slow_zoo: Path) -> None:
    running = Server(slow_zoo, drain_delay_s=1, body_timeout_s=60)
    try:
        with running.connection() as accepted, running.connection() as idle:
            message = request(body=PNG)
            accepted.sendall(message[:-20])
            idle.sendall(request("GET", "/livez"))
            assert read_reply(idle).status == 200
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: any(event["event"] == "draining" for event in running.log_events()))
            refused = running.exchange(request(body=PNG))
            assert refused.status == 503
            assert refused.headers["connection"] == "close"
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["type"].endswith("draining")
            idle.sendall(request(body=PNG))
            assert read_reply(idle).status == 503
            assert running.exchange(request("GET", "/readyz")).status == 503
            assert running.exchange(request("GET", "/livez")).status == 200
            accepted.sendall(message[-20:])
            assert read_reply(accepted).status == 200
        assert running.process.wait(60) == 0
    finally:
        running.close()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_leaves_no_accepted_request_unanswered(slow_zoo: Path, signal_number: int) -> None:
    running = Server(slow_zoo, drain_timeout_s=600)
    try:
        with ThreadPoolExecutor(6) as clients:
            pending = [clients.submit(classify_many, running, 2) for _ in range(6)]
            eventually(lambda: answered(running, "/v1/classify/batch") + running.metric("signet_in_flight") >= 7)
            running.process.send_signal(signal_number)
            statuses = {future.result().status_code for future in pending}
        assert statuses == {200}
        assert running.process.wait(60) == 0
        assert running.log_events()[-1]["event"].startswith("Finished server process")
    finally:
        running.close()


def test_a_port_in_use_is_a_clear_failure(narrow: Server) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(narrow.port), "--models", "/nonexistent"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr.lower()


def test_a_request_that_never_ends_is_cut_off_when_the_drain_time_is_over(slow_zoo: Path) -> None:
    running = Server(slow_zoo, drain_timeout_s=2, body_timeout_s=60)
    try:
        with running.connection() as endless:
            endless.settimeout(60)
            endless.sendall(request(body=PNG[:100], length=len(PNG)))
            eventually(lambda: running.metric("signet_in_flight") == 2)
            begun = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            reply = read_reply(endless)
            assert time.monotonic() - begun > 1.5
            assert (reply.status, reply.headers["connection"]) == (503, "close")
            assert reply.headers["retry-after"] == "1"
            assert reply.json()["type"].endswith("draining")
            assert running.process.wait(60) == 0
    finally:
        running.close()


def test_what_is_not_answered_in_the_drain_time_is_told_so(slow_zoo: Path) -> None:
    """Requests that compute are cut off as well: with 503, never with 500."""
    running = Server(slow_zoo, drain_timeout_s=1, max_queue_images=400, max_batch_images=200, **ONE_AT_A_TIME)
    try:
        with ThreadPoolExecutor(2) as clients:
            pending = [clients.submit(classify_many, running, 150) for _ in range(2)]
            eventually(lambda: running.metric("signet_queue_images") == 300)
            running.process.send_signal(signal.SIGTERM)
            replies = [future.result() for future in pending]
        assert {reply.status_code for reply in replies} <= {200, 503}
        late = [reply for reply in replies if reply.status_code == 503]
        assert late
        assert all(reply.json()["type"].endswith("draining") for reply in late)
    finally:
        running.close()
