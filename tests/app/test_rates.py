"""The limit on how often one client may ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rates import RateLimit, address_name
from tests.helpers import pictures
from tests.helpers.requests import request
from tests.helpers.server import Server, eventually

JPEG = pictures.jpeg()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bucket:
    """The textbook's token bucket, as the oracle."""

    def __init__(self, per_s: float, burst: int, now: float) -> None:
        self.per_s, self.burst, self.tokens, self.now = per_s, burst, float(burst), now

    def take(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.now) * self.per_s)
        self.now = now
        if self.tokens < 1 - 1e-9:
            return False
        self.tokens -= 1
        return True


@given(
    per_s=st.sampled_from([0.5, 1.0, 8.0, 64.0]),
    burst=st.integers(1, 5),
    pauses=st.lists(st.sampled_from([0.0, 0.015625, 0.125, 0.5, 1.0, 4.0]), max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_it_grants_what_a_token_bucket_grants(per_s: float, burst: int, pauses: list[float]) -> None:
    clock = Clock()
    limit, bucket = RateLimit(per_s, burst, clock), Bucket(per_s, burst, clock.now)
    for pause_s in pauses:
        clock.now += pause_s
        assert (limit.wait_s(b"client") == 0) == bucket.take(clock.now)


def test_after_the_wait_that_it_names_a_request_is_granted() -> None:
    clock = Clock()
    limit = RateLimit(0.7, 2, clock)
    assert [limit.wait_s(b"a"), limit.wait_s(b"a")] == [0, 0]
    wait_s = limit.wait_s(b"a")
    assert wait_s == pytest.approx(1 / 0.7)
    assert limit.wait_s(b"b") == 0
    clock.now += wait_s
    assert limit.wait_s(b"a") == 0


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    assert address_name("2001:db8::1") == address_name("2001:db8::ffff:1")
    assert address_name("2001:db8::1") != address_name("2001:db8:0:1::1")
    assert address_name("192.0.2.1") != address_name("192.0.2.2")
    assert address_name("::ffff:192.0.2.1") != address_name("::ffff:192.0.2.2")
    assert address_name(None) == b""


@pytest.fixture(scope="module")
def keyed(zoo: Path) -> Iterator[Server]:
    """A service that grants each key three requests, and one more in ten minutes."""
    running = Server(zoo, api_keys="alpha,beta", rate_limit_per_s=1 / 600, rate_limit_burst=3)
    yield running
    running.close()


def test_each_key_has_its_own_limit_and_health_has_none(keyed: Server) -> None:
    def ask(key: str) -> list[int]:
        return [
            keyed.client.post("/v1/classify", content=JPEG, headers={"X-API-Key": key}).status_code for _ in range(5)
        ]

    assert ask("alpha") == [200, 200, 200, 429, 429]
    assert ask("beta") == [200, 200, 200, 429, 429]
    reply = keyed.client.get("/v2/models/random", headers={"Authorization": "Bearer alpha"})
    assert reply.status_code == 429
    assert 1 <= int(reply.headers["retry-after"]) <= 600
    assert reply.json()["type"] == "urn:signet:problem:rate-limited"
    assert reply.json()["error"]
    eventually(lambda: keyed.metric("signet_rejected_total", reason="rate-limited") == 5)
    assert {keyed.client.get("/livez").status_code for _ in range(9)} == {200}


def test_wrong_keys_cannot_be_tried_quickly(keyed: Server) -> None:
    replies = [
        keyed.client.get("/v1/models", headers={"X-API-Key": f"guess-{index}"}).status_code for index in range(6)
    ]
    assert replies == [401, 401, 401, 429, 429, 429]


def test_without_keys_an_address_is_a_client_and_its_upload_stays_unread(zoo: Path) -> None:
    running = Server(zoo, rate_limit_per_s=1 / 600, rate_limit_burst=2)
    try:
        statuses = [
            running.client.get("/v1/models", headers={"X-API-Key": str(index)}).status_code for index in range(4)
        ]
        assert statuses == [200, 200, 429, 429]
        reply = running.exchange(request(body=JPEG[:100], length=len(JPEG)))
        assert reply.status == 429
        assert reply.headers["connection"] == "close"
    finally:
        running.close()
