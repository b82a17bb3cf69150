"""The examples of docs/api.md, run as they stand against the running service; and that no route lacks one."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.rpc.methods import Methods
from tests.helpers import packed, pictures
from tests.helpers.server import Server, free_port

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
ADDRESS, GRPC_ADDRESS = "127.0.0.1:8000", "127.0.0.1:8001"
ADMIN_KEY = "an admin's key"


@dataclass(frozen=True)
class Example:
    """The programs below one heading, and the routes that the heading names."""

    routes: list[str]
    bash: str | None
    python: str


def examples() -> list[Example]:
    found = []
    for section in re.split(r"^### ", DOCUMENT.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
        found.append(Example(re.findall(r"`([^`]+)`", heading), blocks.get("bash"), blocks["python"]))
    return found


EXAMPLES = examples()
HTTP_EXAMPLES = [example for example in EXAMPLES if example.bash is not None]
each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.routes[0])


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, grpc_port: int) -> Iterator[Server]:
    """The service with small models under the names that the examples use."""
    root = tmp_path_factory.mktemp("zoo")
    packed.write_random(root / "cifar10-resnet18" / "1" / "model.safetensors")
    packed.write_dots(root / "lspet-hourglass" / "1" / "model.safetensors")
    running = Server(root, admin_keys=ADMIN_KEY, grpc_port=grpc_port)
    yield running
    running.close()


@pytest.fixture
def folder(service: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the examples run, with their picture; afterwards all models are loaded again."""
    (tmp_path / "photo.jpg").write_bytes(pictures.jpeg(300, 400))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADMIN_KEY", ADMIN_KEY)
    yield tmp_path
    load = "/v2/repository/models/cifar10-resnet18/load"
    assert service.client.post(load, headers={"X-API-Key": ADMIN_KEY}).status_code == 200


@pytest.mark.parametrize("example", HTTP_EXAMPLES, ids=lambda example: example.routes[0])
def test_the_command_works(example: Example, service: Server, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    assert example.bash is not None
    script = example.bash.replace(ADDRESS, f"127.0.0.1:{service.port}").replace("curl ", "curl -sS ")
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    if "-o people.png" in script:
        assert (folder / "people.png").read_bytes().startswith(pictures.PNG_MAGIC)


@each
def test_the_program_works(example: Example, service: Server, grpc_port: int, folder: Path) -> None:
    printed = io.StringIO()
    program = example.python.replace(ADDRESS, f"127.0.0.1:{service.port}")
    program = program.replace(GRPC_ADDRESS, f"127.0.0.1:{grpc_port}")
    with contextlib.redirect_stdout(printed):
        exec(compile(program, str(DOCUMENT), "exec"), {})
    assert printed.getvalue().strip() or example.routes == ["GET /metrics"]


def test_every_route_has_its_example(service: Server) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    shown = [route for example in HTTP_EXAMPLES for route in example.routes]
    assert sorted(shown) == sorted(routes)
    for example in HTTP_EXAMPLES:
        assert example.bash is not None
        for route in example.routes:
            asked = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(route.split()[1]))
            assert re.search(rf"{ADDRESS}{asked}[\s\"?]", example.bash), route


def test_every_method_of_grpc_has_its_example() -> None:
    shown = [method for example in EXAMPLES if example.bash is None for method in example.routes]
    assert sorted(shown) == sorted(Methods(None, None, None).table())  # type: ignore[arg-type]
