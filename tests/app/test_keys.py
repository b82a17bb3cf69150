"""API keys and admin keys, at the running service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.http as triton
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException

from app.keys import Keys, Role
from tests.app.test_cli import signet
from tests.helpers import pictures
from tests.helpers.requests import request
from tests.helpers.server import Server, eventually

JPEG = pictures.jpeg()
OPEN = ("/livez", "/readyz", "/metrics", "/", "/openapi.json", "/v2/health/live", "/v2/health/ready")
LOAD = "/v2/repository/models/random/load"


@pytest.fixture(scope="module")
def guarded(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with keys from settings and from files."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "clients").write_text("# of the mobile team\nfrom-file-1\n\n  from-file-2  \n")
    (folder / "admins").write_text("chief\n")
    running = Server(
        zoo,
        api_keys="alpha, beta",
        api_keys_file=folder / "clients",
        admin_keys="root",
        admin_keys_file=folder / "admins",
    )
    yield running
    running.close()


@pytest.mark.parametrize("key", ["alpha", "beta", "from-file-1", "from-file-2", "root", "chief"])
@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_every_key_opens(guarded: Server, key: str, header: str) -> None:
    value = f"Bearer {key}" if header == "Authorization" else key
    assert guarded.client.post("/v1/classify", content=JPEG, headers={header: value}).status_code == 200
    assert guarded.client.get("/v2/models/random", headers={header: value}).status_code == 200


BAD = {
    "no key": [],
    "wrong key": [("X-API-Key", "gamma")],
    "empty key": [("X-API-Key", "")],
    "part of a key": [("X-API-Key", "alph")],
    "all keys": [("X-API-Key", "alpha, beta")],
    "comment of the file": [("X-API-Key", "# of the mobile team")],
    "key that is not ASCII": [("X-API-Key", "\u00e4lpha")],
    "wrong bearer": [("Authorization", "Bearer gamma")],
    "key without Bearer": [("Authorization", "alpha")],
    "basic": [("Authorization", "Basic YWxwaGE6")],
    "key of 10,000 characters": [("X-API-Key", "a" * 10_000)],
}


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize(
    ("method", "target"), [("POST", "/v1/classify"), ("GET", "/v1/models"), ("POST", "/v2/models/random/infer")]
)
def test_without_a_valid_key_the_answer_is_401(
    guarded: Server, headers: list[tuple[str, str]], method: str, target: str
) -> None:
    before = guarded.metric("signet_rejected_total", reason="unauthorized")
    reply = guarded.exchange(request(method, target, headers, JPEG if method == "POST" else b""))
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["type"].endswith("unauthorized")
    assert reply.json()["error"]
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    eventually(lambda: guarded.metric("signet_rejected_total", reason="unauthorized") == before + 1)


def test_a_body_is_not_read_without_a_key(guarded: Server) -> None:
    reply = guarded.exchange(request(length=1 << 20, body=JPEG[:100]), half_close=True)
    assert reply.status == 401
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("path", OPEN)
def test_health_metrics_and_documentation_need_no_key(guarded: Server, path: str) -> None:
    assert guarded.client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), ("gamma", 401), ("alpha", 403), ("root", 200), ("chief", 200)]
)
def test_loading_takes_an_admin_key(guarded: Server, key: str | None, status: int) -> None:
    reply = guarded.client.post(LOAD, headers={"X-API-Key": key} if key else {})
    assert reply.status_code == status


@pytest.mark.parametrize("action", ["load", "unload"])
def test_without_admin_keys_nobody_loads(server: Server, action: str) -> None:
    reply = server.exchange(request("POST", f"/v2/repository/models/random/{action}", [("X-API-Key", "root")]))
    assert reply.status == 403
    assert reply.json()["type"].endswith("forbidden")
    assert server.classify(JPEG).status_code == 200


def test_the_stock_client_sends_keys_as_headers(guarded: Server) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{guarded.port}") as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException) as raised:
            client.get_model_metadata("random")
        assert raised.value.status() == "401"
        assert client.get_model_metadata("random", headers={"X-API-Key": "alpha"})["name"] == "random"
        client.register_plugin(BasicAuth("alpha", "beta"))
        with pytest.raises(InferenceServerException):
            client.get_server_metadata()


def test_keys_are_in_no_log(guarded: Server) -> None:
    for key in ("alpha", "from-file-1", "gamma", "root"):
        guarded.client.get("/v1/models", headers={"X-API-Key": key})
        assert f'"{key}"' not in guarded.log_text()
        assert f"{key} " not in guarded.log_text()


def test_roles() -> None:
    assert Keys().role(None) is Role.CLIENT
    assert Keys().role("x") is Role.CLIENT
    assert Keys(admins=["a"]).role(None) is Role.CLIENT
    assert Keys(admins=["a"]).role("a") is Role.ADMIN
    both = Keys(clients=["c", "a"], admins=["a"])
    assert [both.role(key) for key in (None, "", "x", "c", "a")] == [0, 0, 0, Role.CLIENT, Role.ADMIN]


def test_a_missing_key_file_is_a_clear_failure(zoo: Path) -> None:
    with pytest.raises(RuntimeError, match="SIGNET_API_KEYS_FILE"):
        Server(zoo, api_keys_file="/nonexistent")


@pytest.mark.parametrize("content", [b"good\nk\xff\n", "schl\u00fcssel".encode(), b"a\x00b"])
def test_keys_that_no_client_could_send_are_refused_at_the_start(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    ended = signet("serve", SIGNET_ADMIN_KEYS_FILE=str(file))
    assert ended.returncode == 2
    assert ended.stderr.startswith("signet: SIGNET_ADMIN_KEYS_FILE: ")
    assert len(ended.stderr.splitlines()) == 1
    assert "schl" not in ended.stderr
