"""A request's own deadline: on every route that answers pictures, what waits past it gets 504 and is not computed."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from app.errors import Problem, ServiceError
from app.scheduler import Lane, Ran
from app.trace import Trace
from tests.app.test_scheduler import Echo, scheduler
from tests.helpers import pictures
from tests.helpers.server import Server, eventually

# Every machine takes longer than a millisecond to decode it, so its deadline has passed before the network is asked.
LARGE = pictures.jpeg(2000, 2500)
SMALL = pictures.png(32, 32)
PAST_MS = 1
FAR_MS = 10_000_000
FILES = [("image", LARGE), ("image", SMALL)]
INFER = "/v2/models/colour/infer"
ROUTES: dict[str, Callable[[Server, dict[str, Any]], httpx.Response]] = {
    "/v1/classify": lambda at, extra: at.client.post(
        "/v1/classify", content=LARGE, params={"model": "colour", **extra}
    ),
    "/v1/classify form": lambda at, extra: at.client.post(
        "/v1/classify", files=[("image", LARGE)], data={"model": "colour", **extra}
    ),
    "/v1/pose": lambda at, extra: at.client.post("/v1/pose", content=LARGE, params={"model": "dots", **extra}),
    "/v1/classify/batch": lambda at, extra: at.client.post(
        "/v1/classify/batch", files=FILES, params={"model": "colour", **extra}
    ),
    "/v1/pose/batch": lambda at, extra: at.client.post(
        "/v1/pose/batch", files=FILES, params={"model": "dots", **extra}
    ),
    INFER: lambda at, extra: at.client.post(INFER, content=encoded_call(), params=extra),
}
each_route = pytest.mark.parametrize("route", ROUTES)


def encoded_call(**parameters: object) -> bytes:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(LARGE).decode()]}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def computed(server: Server) -> float:
    return server.metric("signet_images_total")


def assert_dropped(server: Server, ask: Callable[[], httpx.Response]) -> None:
    """The request gets 504, its place in the queue is free again, and no image was computed."""
    before, refused = computed(server), server.metric("signet_rejected_total", reason="deadline")
    reply = ask()
    assert reply.status_code == 504, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == "urn:signet:problem:deadline"
    eventually(lambda: server.metric("signet_rejected_total", reason="deadline") == refused + 1)
    assert computed(server) == before
    assert server.metric("signet_queue_images") == 0


@each_route
def test_a_request_past_its_own_deadline_is_not_computed(server: Server, route: str) -> None:
    assert_dropped(server, lambda: ROUTES[route](server, {"timeout_ms": PAST_MS}))


@each_route
def test_one_with_time_enough_is_answered_as_one_without_a_deadline(server: Server, route: str) -> None:
    with_time, without = (ROUTES[route](server, extra) for extra in ({"timeout_ms": FAR_MS}, {}))
    assert with_time.status_code == without.status_code == 200
    told = [{key: value for key, value in reply.json().items() if key != "timing_ms"} for reply in (with_time, without)]
    assert told[0] == told[1]


@each_route
@pytest.mark.parametrize("value", ["0", "-1", "abc", "1.5", "nan", "", "1e400", str(1 << 60)])
def test_what_is_no_time_is_refused_by_name(server: Server, route: str, value: str) -> None:
    reply = ROUTES[route](server, {"timeout_ms": value})
    assert reply.status_code == 422, reply.text
    assert [entry["field"] for entry in reply.json()["errors"]] == ["timeout_ms"]


def test_the_query_wins_over_the_form(server: Server) -> None:
    reply = server.client.post(
        "/v1/classify", files=[("image", LARGE)], data={"timeout_ms": PAST_MS}, params={"timeout_ms": FAR_MS}
    )
    assert reply.status_code == 200


def test_the_timeout_of_tritons_client(server: Server) -> None:
    """It sends whole microseconds; 0 is none, as on Triton."""
    image = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([LARGE], object))
    before = computed(server)
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(InferenceServerException, match="waited") as raised:
            client.infer("colour", [image], timeout=PAST_MS * 1000)
        assert raised.value.status() == "504"
        assert computed(server) == before
        for patient in (FAR_MS * 1000, 0, None):
            assert client.infer("colour", [image], timeout=patient).as_numpy("logits").shape == (1, 3)


def test_the_shorter_of_both_holds(server: Server) -> None:
    for own_us, query_ms in ((PAST_MS * 1000, FAR_MS), (FAR_MS * 1000, PAST_MS)):
        call = encoded_call(timeout=own_us)
        assert_dropped(server, lambda: server.client.post(INFER, content=call, params={"timeout_ms": query_ms}))  # noqa: B023


@pytest.mark.parametrize("value", [-1, 1.5, "100", True, None, 1 << 64, [1]])
def test_a_v2_timeout_that_is_none_is_refused_by_name(server: Server, value: object) -> None:
    reply = server.client.post(INFER, content=encoded_call(timeout=value))
    assert reply.status_code == 400, reply.text
    assert "timeout" in reply.json()["error"]


def test_the_services_own_limit_holds_if_it_is_shorter(zoo: Any) -> None:
    running = Server(zoo, queue_deadline_ms=1)
    try:
        assert_dropped(running, lambda: ROUTES["/v1/classify"](running, {"timeout_ms": FAR_MS}))
    finally:
        running.close()


def test_it_is_documented(server: Server) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    for route in ROUTES:
        described = paths[route.split()[0].replace("colour", "{name}")]["post"]
        (parameter,) = [entry for entry in described["parameters"] if entry["name"] == "timeout_ms"]
        assert "504" in parameter["description"]
        assert {"422", "504"} <= set(described["responses"])


@given(own_s=st.floats(0, 100) | st.just(math.inf), limit_s=st.floats(0.001, 100))
@settings(deadline=None)
def test_a_request_may_bring_its_deadline_forward_but_not_put_it_off(own_s: float, limit_s: float) -> None:
    trace = Trace("id")
    trace.answer_within(own_s)
    chosen = scheduler(deadline_s=limit_s)
    before = time.monotonic()
    with chosen.admit(1, trace.deadline) as deadline:
        assert min(trace.begun + own_s, before + limit_s) <= deadline
        assert deadline <= min(trace.begun + own_s, time.monotonic() + limit_s)
    chosen.close()


@given(waits=st.lists(st.sampled_from([0.0, 0.001, 0.01, 60.0]), min_size=1, max_size=8), max_batch=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_those_whose_time_is_up_are_told_while_the_others_still_wait(waits: list[float], max_batch: int) -> None:
    """The only thread is held until all of them have their 504; it then computes the others and nothing else."""
    session: Any = Echo()
    session.open.clear()
    chosen = scheduler(parallel_images=1, max_batch=max_batch)

    async def scene() -> list[Ran | BaseException]:
        image = np.zeros((1, 1, 1, 1), np.uint8)

        def ask(within_s: float) -> asyncio.Task[Ran]:
            return asyncio.ensure_future(chosen.inference.run(session, image, time.monotonic() + within_s))

        holder = ask(60)
        await asyncio.sleep(0)
        asked = [ask(within_s) for within_s in waits]
        hurried = [task for task, within_s in zip(asked, waits, strict=True) if within_s < 60]
        try:
            if hurried:
                done, _ = await asyncio.wait(hurried, timeout=30)
                assert len(done) == len(hurried)
        finally:
            session.open.set()
        await holder
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(scene())
    chosen.close()
    for answer, within_s in zip(answers, waits, strict=True):
        assert isinstance(answer, Ran) == (within_s == 60)
        assert isinstance(answer, Ran) or (isinstance(answer, ServiceError) and answer.problem is Problem.DEADLINE)
    assert sum(session.runs) == 1 + waits.count(60)


class _Work:
    """A job of a lane that notes whether it ran."""

    def __init__(self) -> None:
        self.ran = False

    def __call__(self) -> None:
        self.ran = True


@pytest.mark.parametrize("ended_by", ["its deadline", "its client"])
def test_a_job_that_was_dropped_neither_runs_nor_stays_in_memory(ended_by: str) -> None:
    lane, held = Lane("test", 1), threading.Event()

    async def scene() -> None:
        holder = asyncio.ensure_future(lane.run(lambda: held.wait(10), math.inf))
        await asyncio.sleep(0)
        work = _Work()
        watch = weakref.ref(work)
        within_s = 0.01 if ended_by == "its deadline" else 60
        waiting = asyncio.ensure_future(lane.run(work, time.monotonic() + within_s))
        await asyncio.sleep(0)
        if ended_by == "its client":
            waiting.cancel()
        (ending,) = await asyncio.gather(waiting, return_exceptions=True)
        expected = ServiceError if ended_by == "its deadline" else asyncio.CancelledError
        assert isinstance(ending, expected)
        assert not work.ran
        del work, waiting, ending
        gc.collect()
        assert watch() is None
        held.set()
        await holder

    try:
        asyncio.run(scene())
    finally:
        held.set()
        lane.close()


def test_the_queue_ends_empty(zoo: Any) -> None:
    """Requests with all sorts of deadlines at once: each is answered or dropped, and afterwards nothing is left."""
    running = Server(zoo, threads=1, parallel_images=1)

    async def ask(client: httpx.AsyncClient, timeout_ms: int) -> int:
        query = {"model": "colour", "timeout_ms": timeout_ms}
        return (await client.post("/v1/classify", content=LARGE, params=query)).status_code

    async def scene() -> list[int]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", timeout=60) as client:
            return await asyncio.gather(*(ask(client, wait) for wait in [1, 5, 20, 50, FAR_MS] * 5))

    try:
        statuses = asyncio.run(scene())
        assert set(statuses) == {200, 504}
        eventually(lambda: running.metric("signet_rejected_total", reason="deadline") == statuses.count(504))
        assert computed(running) == statuses.count(200)
        assert running.metric("signet_queue_images") == 0
        assert ROUTES["/v1/classify"](running, {}).status_code == 200
    finally:
        running.close()
