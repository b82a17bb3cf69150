"""The documentation page: Swagger UI from the service itself."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.helpers.server import Server
from tests.page.conftest import Watched


def test_the_documentation_needs_nothing_from_elsewhere(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    try:
        watched = Watched(context.new_page(), f"http://127.0.0.1:{server.port}/")
        page = watched.page
        page.goto(f"{watched.address}docs")
        page.get_by_role("button", name="post /v1/classify", exact=False).first.click()
        expect(page.get_by_text("Say what a picture shows.")).to_be_visible()
        assert watched.errors == []
        assert watched.foreign_requests == []
    finally:
        context.close()


@pytest.mark.parametrize("path", ["/docs", "/docs/docs.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"])
def test_its_files_carry_strict_headers(server: Server, path: str) -> None:
    reply = server.client.get(path)
    assert reply.status_code == 200
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]


def test_only_its_own_files_are_served(server: Server) -> None:
    for name in ("__init__.py", "nothing.js", "..%2fmain.py"):
        assert server.client.get(f"/docs/{name}").status_code == 404
