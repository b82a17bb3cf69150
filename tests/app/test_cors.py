"""Pages of other origins: kept out unless a setting lets them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings
from tests.helpers import pictures
from tests.helpers.server import Server

FRIEND, STRANGER = "https://app.example.org", "https://evil.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}


@pytest.fixture(scope="module")
def opened(zoo: Path) -> Iterator[Server]:
    running = Server(zoo, cors_origins=f"{FRIEND}, http://localhost:3000", api_keys="alpha")
    yield running
    running.close()


def test_by_default_no_other_origin_is_let_in(server: Server) -> None:
    answer = server.client.get("/v1/models", headers={"Origin": FRIEND})
    preflight = server.client.options("/v1/classify", headers={"Origin": FRIEND, **PREFLIGHT})
    assert preflight.status_code == 405
    for reply in (answer, preflight):
        assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_a_named_origin_may_ask_with_a_key_and_reads_errors_too(opened: Server) -> None:
    preflight = opened.client.options("/v1/classify", headers={"Origin": FRIEND, **PREFLIGHT})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == FRIEND
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "x-api-key" in preflight.headers["access-control-allow-headers"].lower()
    for headers, status in (({"X-API-Key": "alpha"}, 200), ({}, 401)):
        reply = opened.client.post("/v1/classify", content=pictures.jpeg(), headers={"Origin": FRIEND, **headers})
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == FRIEND
        assert "Retry-After" in reply.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in reply.headers


def test_other_origins_are_still_kept_out(opened: Server) -> None:
    assert opened.client.options("/v1/classify", headers={"Origin": STRANGER, **PREFLIGHT}).status_code == 400
    reply = opened.client.get("/v1/models", headers={"Origin": STRANGER, "X-API-Key": "alpha"})
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/page", "null"])
def test_what_is_no_origin_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("SIGNET_CORS_ORIGINS", origin)
    with pytest.raises(ValidationError, match="origin"):
        Settings()
