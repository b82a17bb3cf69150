"""What the image is built from. The image itself is tried by deploy/test_image.sh."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from app.settings import Settings
from tests.deploy.conftest import ROOT

LOCKS = ("build", "serve", "train")
PYTHON = "3.11.2"
ENTRY = re.compile(r"^([a-z0-9-]+)==(\S+)( ; [^\\]+)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def pins(name: str) -> dict[str, Version]:
    """What a lock file gives a Linux machine with the image's Python."""
    found = {}
    for line in (ROOT / f"deploy/locks/{name}.lock").read_text().splitlines():
        entry = ENTRY.match(line)
        if entry is None:
            assert HASH.match(line), f"{name}.lock: {line}"
            continue
        requirement = Requirement(f"{entry[1]}=={entry[2]}{entry[3] or ''}")
        here = {"sys_platform": "linux", "python_full_version": PYTHON, "platform_machine": "x86_64"}
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert entry[1] not in found, entry[1]
            found[entry[1]] = Version(entry[2])
    return found


@pytest.fixture(scope="module")
def asked(root: Path) -> dict[str, list[str]]:
    """What the project asks for, under the name of the lock that answers."""
    content: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())
    serve = content["project"]["dependencies"]
    train = content["project"]["optional-dependencies"]["train"]
    return {"build": content["build-system"]["requires"], "serve": serve, "train": [*serve, *train]}


@pytest.mark.parametrize("name", LOCKS)
def test_each_lock_pins_what_the_project_asks_for(name: str, asked: dict[str, list[str]]) -> None:
    found = pins(name)
    for line in asked[name]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(found[requirement.name]), f"{line}: {found[requirement.name]}"


@pytest.mark.parametrize("name", LOCKS)
def test_each_lock_hashes_every_file_and_names_no_place(name: str, root: Path) -> None:
    text = (root / f"deploy/locks/{name}.lock").read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|@ ", text)
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)


def test_training_has_the_same_versions_as_serving() -> None:
    assert pins("serve").items() <= pins("train").items()
    assert "torch" not in pins("serve")


def test_the_lock_is_complete_for_what_is_installed_here() -> None:
    """Each package that a locked package asks for is locked too, as far as they are installed here."""
    locked = pins("serve")
    for name in locked:
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in asked:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": "", "sys_platform": "linux"}):
                assert re.sub(r"[-_.]+", "-", requirement.name).lower() in locked, f"{name} needs {line}"


def stage(name: str) -> str:
    """The instructions of one stage of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text()
    (found,) = re.findall(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize("name", ["serve", "train"])
def test_an_image_runs_its_program_directly_as_a_user_without_a_name(name: str) -> None:
    text = stage(name)
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0]) == ["/opt/signet/bin/signet"]
    assert re.search(r"^USER [1-9]\d{3,}:[1-9]\d{3,}$", text, re.MULTILINE)
    assert "org.opencontainers.image.licenses" in text


def test_the_service_is_what_a_plain_build_gives() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)[-1] == "serve"
    assert "HEALTHCHECK" in stage("serve")
    assert "apt-get" not in stage("serve")
    assert "train.lock" not in stage("tools") + stage("environment") + stage("serve")


def test_the_image_sets_only_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(re.findall(r"\b(SIGNET_[A-Z_]+)=(\S+)", stage("serve")))
    for name, value in given.items():
        assert name.removeprefix("SIGNET_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert settings.models == (Path("/models"), Path("/opt/signet/zoo"))
    assert f"EXPOSE {settings.port}\n" in stage("serve")


def test_the_builder_is_sent_only_what_the_image_needs(root: Path) -> None:
    first, *others = [line for line in (root / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert first == "*"
    sent = {line[1:] for line in others if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", (root / "Dockerfile").read_text(), re.MULTILINE):
        *sources, _ = line.split()
        copied |= {source.rstrip("/") for source in sources}
    assert {path.removesuffix("/") for path in sent} == {
        "deploy/locks" if path.startswith("deploy/locks/") else path for path in copied
    }
    assert all((root / path).exists() for path in sent)


class Answering(BaseHTTPRequestHandler):
    """Answers every request with the status that the test chose."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def health(root: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(root / "deploy/healthcheck.py")],
        env={"PATH": os.environ["PATH"], "SIGNET_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_the_health_check_is_the_services_readiness(
    root: Path, answering: HTTPServer, monkeypatch: pytest.MonkeyPatch, status: int, healthy: bool
) -> None:
    monkeypatch.setattr(Answering, "status", status)
    done = health(root, answering.server_port)
    assert (done.returncode == 0) is healthy
    assert healthy or str(status) in done.stderr


def test_the_health_check_fails_where_nothing_listens(root: Path, answering: HTTPServer) -> None:
    port = answering.server_port
    answering.server_close()
    done = health(root, port)
    assert done.returncode == 1
    assert "no answer" in done.stderr
