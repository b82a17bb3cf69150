"""docker-compose.yml, read by a Compose implementation, and its proxy, run by a real nginx."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.keys import read_keys
from app.settings import Settings
from tests.helpers import packed, pictures
from tests.helpers.server import Server, free_port

Compose = Callable[..., dict[str, Any]]
BYTES = {"m": 1 << 20, "g": 1 << 30}


def implementation() -> list[str] | None:
    """The command of the Compose that is installed: Docker's plugin, or its predecessor."""
    candidates = (["docker", "compose"], ["docker-compose"])
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        if subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
            return command
    return None


@pytest.fixture(scope="module")
def compose(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Compose:
    """Gives the project as Compose understands it; fails on whatever Compose refuses."""
    command = implementation()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed (Debian: docker-compose)")
    empty = tmp_path_factory.mktemp("environment") / "empty"
    empty.touch()

    def read(*options: str, **variables: str) -> dict[str, Any]:
        known = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            [*command, "--env-file", str(empty), *options, "config"],
            cwd=root,
            env=known | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        content: dict[str, Any] = yaml.safe_load(done.stdout)
        return content

    return read


@pytest.fixture(scope="module")
def services(root: Path) -> dict[str, dict[str, Any]]:
    """The services as written, with every profile."""
    content = yaml.safe_load((root / "docker-compose.yml").read_text())
    found: dict[str, dict[str, Any]] = content["services"]
    return found


def test_without_a_profile_it_is_the_service_and_its_dashboards(compose: Compose) -> None:
    found = compose()["services"]
    default = {name for name, service in found.items() if not service.get("profiles")}
    assert default == {"signet", "prometheus", "grafana"}


def test_the_proxy_profile_adds_replicas_under_the_same_name(compose: Compose) -> None:
    found = compose("--profile", "proxy")["services"]
    assert {"proxy", "replica"} < set(found)
    assert not found["replica"].get("ports"), "a published port would be taken by the first replica"
    assert found["replica"]["networks"]["default"]["aliases"] == ["signet"]
    assert found["replica"]["environment"] == found["signet"]["environment"]


def test_variables_reach_the_service(compose: Compose) -> None:
    given = {"SIGNET_MAX_QUEUE_IMAGES": "7", "MODELS_FOLDER": "/srv/models", "SIGNET_CPUS": "4"}
    service = compose(**given)["services"]["signet"]
    assert str(service["environment"]["SIGNET_MAX_QUEUE_IMAGES"]) == "7"
    assert "/srv/models" in str(service["volumes"])
    assert float(service["deploy"]["resources"]["limits"]["cpus"]) == 4


def test_every_setting_exists_and_empty_ones_are_the_defaults(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services["signet"]["environment"].items():
        assert name.removeprefix("SIGNET_").lower() in Settings.model_fields
        if not name.endswith("_FILE"):
            assert value == f"${{{name}:-}}"
        monkeypatch.setenv(name, "")
    assert Settings() == Settings.model_construct()
    assert Settings().max_queue_images == Settings.model_fields["max_queue_images"].default


def test_keys_are_secrets_and_without_any_the_service_is_open(root: Path, compose: Compose, tmp_path: Path) -> None:
    content = compose()
    for kind in ("api_keys", "admin_keys"):
        file = Path(content["secrets"][kind]["file"])
        assert file == root / "deploy/keys" / kind
        assert read_keys((), file) == []
        for name in ("signet", "replica"):
            service = compose("--profile", "proxy")["services"][name]
            assert kind in {secret["source"] for secret in service["secrets"]}
            assert service["environment"][f"SIGNET_{kind.upper()}_FILE"] == f"/run/secrets/{kind}"
    mine = tmp_path / "keys"
    mine.write_text("one\n# a comment\ntwo\n")
    assert read_keys((), mine) == ["one", "two"]
    assert compose(API_KEYS_FILE=str(mine))["secrets"]["api_keys"]["file"] == str(mine)


def test_every_service_is_held_and_watched(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["pids_limit"] > 0, name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["logging"]["options"]["max-size"], name
        assert all(
            str(port).startswith(("127.0.0.1:", "${PUBLISH_ADDRESS:-127.0.0.1}:")) for port in service.get("ports", [])
        )


def test_images_have_exact_versions(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        tag = service["image"].partition(":")[2].removeprefix("${SIGNET_VERSION:-").removesuffix("}")
        assert re.fullmatch(r"v?\d+\.\d+\.\d+(-alpine)?", tag), name


def test_limits_agree_with_the_services_settings(services: dict[str, dict[str, Any]]) -> None:
    signet, settings = services["signet"], Settings()
    assert settings.drain_timeout_s < int(signet["stop_grace_period"].removesuffix("s"))
    limits = signet["deploy"]["resources"]["limits"]
    memory = re.fullmatch(r"\$\{SIGNET_MEMORY:-(\d+)([MG])\}", limits["memory"])
    cpus = re.fullmatch(r"\$\{SIGNET_CPUS:-(\d+)\}", limits["cpus"])
    assert memory is not None
    assert cpus is not None
    decoding = int(cpus[1]) * settings.max_pixels * 4
    assert int(memory[1]) * BYTES[memory[2].lower()] > (100 << 20) + settings.max_buffered_bytes + decoding


def test_the_proxy_lets_through_what_the_service_takes(root: Path) -> None:
    """Its own limits lie just above, so that clients get the service's answers and not the proxy's."""
    text = (root / "deploy/nginx/nginx.conf").read_text()
    settings = Settings()

    def directive(name: str) -> str:
        found = re.search(rf"^\s*{name} ([^;]+);", text, re.MULTILINE)
        assert found is not None, name
        return found[1]

    body = directive("client_max_body_size")
    assert settings.max_body_bytes < int(body[:-1]) * BYTES[body[-1]] <= settings.max_body_bytes * 1.1
    count, size = directive("large_client_header_buffers").split()
    assert int(count) * int(size[:-1]) * 1024 > settings.max_header_bytes
    assert int(directive("proxy_read_timeout")[:-1]) * 1000 > settings.queue_deadline_ms + 10_000
    assert "proxy_request_buffering on;" in text
    assert "proxy_buffering on;" in text


@pytest.fixture(scope="module")
def proxied(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, httpx.Client]]:
    """The service behind nginx with the project's configuration; only names and paths are those of this machine."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed (Debian: nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    zoo = tmp_path_factory.mktemp("zoo")
    packed.write_random(zoo / "random" / "1" / "model.safetensors")
    server = Server(zoo)
    port = free_port()
    text = (root / "deploy/nginx/nginx.conf").read_text()
    for written, local in {
        "signet:8000": f"127.0.0.1:{server.port}",
        "listen 8080": f"listen 127.0.0.1:{port}",
        "/tmp/": f"{folder}/",
        "worker_processes auto": "worker_processes 1",
        "/dev/stderr": f"{folder}/error.log",
    }.items():
        assert written in text
        text = text.replace(written, local)
    (folder / "nginx.conf").write_text(text)
    here = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")  # the folder is this user's alone
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", here])
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
    try:
        for _ in range(200):
            try:
                if client.get("/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield server, client
    finally:
        client.close()
        process.terminate()
        process.wait(10)
        server.close()


def test_requests_pass_the_proxy(proxied: tuple[Server, httpx.Client]) -> None:
    _, client = proxied
    reply = client.post(
        "/v1/classify", files={"image": pictures.jpeg(600, 800)}, headers={"X-Request-ID": "through-the-proxy"}
    )
    assert reply.status_code == 200
    assert reply.json()["image"] == {"width": 800, "height": 600}
    assert reply.headers["x-request-id"] == "through-the-proxy"


@pytest.mark.parametrize(
    ("body", "status"), [(b"no picture", 415), (bytes(Settings().max_body_bytes + 1), 413)], ids=["415", "413"]
)
def test_the_services_own_refusals_pass_the_proxy(
    proxied: tuple[Server, httpx.Client], body: bytes, status: int
) -> None:
    _, client = proxied
    reply = client.post("/v1/classify", content=body)
    assert reply.status_code == status
    assert reply.headers["content-type"].startswith("application/problem+json")


def test_metrics_do_not_pass_the_proxy(proxied: tuple[Server, httpx.Client]) -> None:
    server, client = proxied
    assert client.get("/metrics").status_code == 404
    assert server.client.get("/metrics").status_code == 200
