"""The page as people use it to classify: file, example, paste, drop, camera; mouse, keyboard and screen reader."""

from __future__ import annotations

import base64
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.helpers.server import Server
from tests.page.conftest import Watched

# Softmax over ten times the mean colour of `red`, the closed form of the model.
_WEIGHTS = [math.exp(10 * channel / 255) for channel in (150, 120, 100)]
RED, GREEN, BLUE = (f"{100 * weight / sum(_WEIGHTS):.1f} %" for weight in _WEIGHTS)


def choose(page: Page, file: Path) -> None:
    page.locator("#file").set_input_files(file)


def expect_red(page: Page) -> None:
    expect(page.locator("#bars li")).to_have_text([f"red{RED}", f"green{GREEN}", f"blue{BLUE}"])


def test_a_chosen_file_gets_its_bars_and_figures(page: Page, red: Path, server: Server) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(red)
    expect_red(page)
    widths = page.locator("#bars .fill").evaluate_all("fills => fills.map(fill => fill.style.width)")
    assert [float(width.rstrip("%")) for width in widths] == [float(share.rstrip(" %")) for share in (RED, GREEN, BLUE)]
    expect(page.get_by_role("img", name="Your picture: it's red.png")).to_be_visible()
    expect(page.locator("#timing-list dt")).to_have_text(
        ["decode", "preprocess", "queue", "infer", "postprocess", "other"]
    )
    sizes = server.client.get("/v1/models/colour").json()["sizes"]
    expect(page.locator("#sizes-ratio")).to_have_text(f"{sizes['ratio']:.1f} \u00d7 smaller")
    expect(page.locator("#sizes-list")).to_contain_text(f"{sizes['float32_bytes'] / 1e3:.1f} kB")
    expect(page.locator("#memory-list")).to_contain_text("Whole service, resident")


def test_the_number_of_classes_is_chosen(page: Page, red: Path) -> None:
    choose(page, red)
    expect_red(page)
    page.get_by_label("Classes").fill("1")
    expect(page.locator("#bars li")).to_have_count(1)


def test_the_page_is_usable_by_keyboard_alone(page: Page, red: Path) -> None:
    page.on("filechooser", lambda _: None)  # from here on the browser's own chooser stays closed
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("(at => at.id || at.dataset.example || at.className)(document.activeElement)"))
    assert order == [
        *("skip", "docs-link", "key-button", "choose", "camera"),
        *("cat.jpg", "rocket.jpg", "astronaut.jpg", "model"),
    ]
    page.locator("#choose").focus()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(red)
    expect_red(page)
    page.locator("#top-k").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    expect(page.locator("#bars li")).to_have_count(2)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_an_example_is_one_click_away(page: Page) -> None:
    page.get_by_role("button", name="a rocket").click()
    expect(page.locator("#bars li").first).to_contain_text("blue")


def test_a_pasted_picture_is_answered(page: Page, red: Path) -> None:
    encoded = base64.b64encode(red.read_bytes()).decode()
    page.evaluate(
        """async data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
        }""",
        encoded,
    )
    page.keyboard.press("Control+V")
    expect_red(page)


def test_a_dropped_picture_is_answered(page: Page, red: Path) -> None:
    transfer = page.evaluate_handle(
        """data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "red.png", {type: "image/png"}));
            return transfer;
        }""",
        base64.b64encode(red.read_bytes()).decode(),
    )
    page.dispatch_event("#stage", "dragover", {"dataTransfer": transfer})
    expect(page.locator("#stage")).to_have_class("stage over")
    page.dispatch_event("#stage", "drop", {"dataTransfer": transfer})
    expect_red(page)
    expect(page.locator("#stage")).to_have_class("stage filled")


def test_the_camera_takes_a_picture(page: Page) -> None:
    page.get_by_role("button", name="Use the camera").click()
    shoot = page.get_by_role("button", name="Take the picture")
    expect(shoot).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="Your picture: camera.jpg")).to_be_visible()
    expect(page.locator("#bars li")).to_have_count(3)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_a_bad_file_is_told_and_the_page_goes_on(watched: Watched, tmp_path: Path, red: Path) -> None:
    page = watched.page
    bad = tmp_path / "notes.jpg"
    bad.write_text("no picture")
    choose(page, red)
    expect_red(page)
    choose(page, bad)
    alert = page.locator("#error")
    expect(alert).to_contain_text("The data is not a JPEG, PNG or WebP picture")
    expect(alert).to_have_attribute("role", "alert")
    expect(alert.locator("#error-id")).to_contain_text("Request ")
    expect(page.locator("#bars")).to_be_hidden()
    expect(page.get_by_text("The browser cannot show this file.")).to_be_visible()
    choose(page, red)
    expect_red(page)
    expect(alert).to_be_hidden()
    assert ["415" in error for error in watched.errors] == [True]  # the browser's own line about the answer
    watched.errors.clear()


def test_an_answer_is_announced(page: Page, red: Path) -> None:
    choose(page, red)
    expect(page.get_by_role("status").first).to_have_text(f"red, {RED}; green, {GREEN}; blue, {BLUE}")


def test_the_tree_of_roles_and_names(page: Page, red: Path) -> None:
    choose(page, red)
    expect_red(page)
    expect(page.get_by_role("main")).to_match_aria_snapshot(
        """
        - main:
          - region "Picture":
            - heading "Picture" [level=2]
            - 'img "Your picture: it''s red.png"'
            - button "Choose a picture"
            - button "Use the camera"
            - group "Or try":
              - button "a cat"
              - button "a rocket"
              - button "an astronaut"
          - form "Settings":
            - combobox "Model"
            - spinbutton "Classes"
          - region "Answer":
            - list:
              - listitem: /red/
          - region "Time"
          - region "Weight"
          - region "Command":
            - button "Copy"
        """
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules_and_contrast_hold(page: Page, red: Path, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    choose(page, red)
    expect_red(page)
    page.get_by_role("button", name="API key").click()
    found = Axe().run(page)
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found.response["violations"]] == []


@pytest.mark.parametrize("width", [360, 1280])
def test_dark_and_light_differ_and_nothing_sticks_out(page: Page, red: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    choose(page, red)
    expect_red(page)
    seen = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    brightness = [sum(int(part) for part in colour[4:-1].split(",")) for colour in seen]
    assert brightness[0] > 600
    assert brightness[1] < 150
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", ["red.png", 'it\'s red, or "so"; $HOME.png'])
def test_the_command_works_as_it_stands(page: Page, red: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(red.read_bytes())
    page.get_by_label("Classes").fill("2")
    choose(page, tmp_path / name)
    expect(page.locator("#bars li")).to_have_count(2)
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copied")).to_have_text("The command is copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert '"label":"red"' in ended.stdout
    assert ended.stdout.count('"label"') == 2


def test_a_key_is_asked_for_and_kept_in_the_page_only(browser: Browser, zoo: Path, red: Path) -> None:
    running = Server(zoo, api_keys="sesame")
    context = browser.new_context()
    try:
        watched = Watched(context.new_page(), f"http://127.0.0.1:{running.port}/")
        page = watched.page
        page.goto(watched.address)
        key = page.get_by_role("textbox", name="API key")
        expect(key).to_be_focused()
        expect(page.locator("#error")).to_contain_text("An API key is needed")
        key.fill("sesame")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Picks one of 3 classes")).to_be_visible()
        expect(page.locator("#error")).to_be_hidden()
        choose(page, red)
        expect_red(page)
        command = page.locator("#command-text").inner_text()
        assert '-H "X-API-Key: $SIGNET_API_KEY"' in command
        assert "sesame" not in command
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert not any("sesame" in url for url in watched.requests)
        assert all("401" in error for error in watched.errors)
    finally:
        context.close()
        running.close()


def test_a_full_queue_offers_another_try(watched: Watched, red: Path) -> None:
    page = watched.page
    body = '{"title": "The queue is full", "detail": "64 images wait.", "request_id": "abc"}'
    full = {"status": 429, "headers": {"Retry-After": "1"}, "content_type": "application/problem+json", "body": body}
    page.route("**/v1/classify?*", lambda route: route.fulfill(**full))  # type: ignore[arg-type]
    choose(page, red)
    expect(page.locator("#error-detail")).to_have_text("64 images wait. Try again in 1 s.")
    page.unroute("**/v1/classify?*")
    page.get_by_role("button", name="Try again").click()
    expect_red(page)
    watched.errors.clear()


def test_the_page_and_its_files_carry_strict_headers(server: Server) -> None:
    for path in ("/", "/page/main.js", "/page/style.css", "/page/cat.jpg"):
        reply = server.client.get(path, headers={"Accept": "text/html"})
        assert reply.status_code == 200
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["permissions-policy"].startswith("camera=(self)")
        again = server.client.get(path, headers={"Accept": "text/html", "If-None-Match": reply.headers["etag"]})
        assert again.status_code == 304
        for part in ("bytes=0-9", "bytes=abc", "bytes=99999999-"):
            whole = server.client.get(path, headers={"Accept": "text/html", "Range": part})
            assert (whole.status_code, whole.content) == (200, reply.content)


@pytest.mark.parametrize("name", ["nothing.js", "..%2fmain.py", "%2e%2e", "main.js%00"])
def test_only_the_pages_own_files_are_served(server: Server, name: str) -> None:
    reply = server.client.get(f"/page/{name}")
    assert reply.status_code == 404
    assert reply.json()["error"]


def test_programs_get_the_index_and_the_page_can_be_turned_off(server: Server, zoo: Path) -> None:
    assert server.client.get("/").json()["models"] == ["colour", "joints"]
    running = Server(zoo, page="false")
    try:
        assert running.client.get("/", headers={"Accept": "text/html"}).json()["name"] == "signet"
        assert running.client.get("/page/main.js").status_code == 404
    finally:
        running.close()
