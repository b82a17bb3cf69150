"""A real browser in front of the real service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.helpers import packed, pictures
from tests.helpers.server import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]

expect.set_options(timeout=60_000)


class Watched:
    """A page whose console and requests are watched; what a test expects there it takes out of the lists."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(60_000)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    @property
    def foreign_requests(self) -> list[str]:
        own = (self.address, "blob:", "data:")
        return [url for url in self.requests if not url.startswith(own)]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells colours, and one that finds discs of six colours."""
    root = tmp_path_factory.mktemp("page-zoo")
    packed.write_colour(root / "colour" / "1" / "model.safetensors")
    packed.write_dots(root / "joints" / "1" / "model.safetensors")
    return root


@pytest.fixture(scope="session")
def server(zoo: Path) -> Iterator[Server]:
    running = Server(zoo, default_model="colour")
    yield running
    running.close()


@pytest.fixture
def watched(browser: Browser, server: Server) -> Iterator[Watched]:
    """The page, opened; afterwards nothing may have gone wrong in it and nothing come from elsewhere."""
    address = f"http://127.0.0.1:{server.port}/"
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    watched = Watched(context.new_page(), address)
    watched.page.goto(address)
    watched.page.get_by_text("Picks one of 3 classes").wait_for()
    yield watched
    context.close()
    assert watched.errors == []
    assert watched.foreign_requests == []


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


@pytest.fixture(scope="session")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture whose class is `red`: the model's logits are ten times the mean of each colour."""
    path = tmp_path_factory.mktemp("pictures") / "it's red.png"
    path.write_bytes(pictures.flat_png(bytes((150, 120, 100)), side_px=64))
    return path
