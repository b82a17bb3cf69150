"""The page with a pose model: skeletons over the picture, boxes around people."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageDraw
from playwright.sync_api import Page, Route, expect

from tests.helpers import pictures
from tests.helpers.packed import DOT_COLOURS
from tests.helpers.server import eventually

NAMES = ["head_top", "neck", "left_wrist"]
SKELETON = [[0, 1], [1, 2]]
WIDTH, HEIGHT = 400, 300
BOTH_AT_ONE_PLACE = """() => {
    const [shown, overlay] = ["shown", "overlay"].map((id) => document.getElementById(id));
    const places = [shown, overlay].map((element) => JSON.stringify(element.getBoundingClientRect()));
    return places[0] === places[1];
}"""


def person(box: list[float], points: list[tuple[float, float, float]]) -> dict[str, Any]:
    keypoints = [{"name": name, "x": x, "y": y, "score": s} for name, (x, y, s) in zip(NAMES, points, strict=True)]
    return {"box": box, "score": 0.75, "keypoints": keypoints}


class Poses:
    """Stands for /v1/pose: a straight line of joints through the middle of each box, and what was asked."""

    def __init__(self) -> None:
        self.asked: list[list[list[float]]] = []

    def __call__(self, route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        boxes = json.loads(query["boxes"][0]) if "boxes" in query else []
        self.asked.append(boxes)
        people = []
        for x, y, w, h in boxes or [[0, 0, WIDTH, HEIGHT]]:
            middle = x + w / 2
            people.append(person([x, y, w, h], [(middle, y + h / 4, 0.9), (middle, y + h / 2, 0.8), (0, 0, 0.05)]))
        answer = {
            "model": "joints",
            "version": "1",
            "image": {"width": WIDTH, "height": HEIGHT},
            "people": people,
            "skeleton": SKELETON,
            "timing_ms": {"decode": 1.0, "preprocess": 1.0, "queue": 0.0, "infer": 5.0, "postprocess": 1.0, "total": 9},
        }
        route.fulfill(status=200, content_type="application/json", body=json.dumps(answer))


@pytest.fixture
def poses(page: Page, tmp_path: Path) -> Poses:
    """The page with the pose model chosen and a grey picture answered."""
    stand_in = Poses()
    page.route("**/v1/pose?*", stand_in)
    page.get_by_label("Model").select_option("joints")
    show_grey(page, tmp_path)
    return stand_in


def show_grey(page: Page, folder: Path) -> None:
    """Give a grey picture to the pose model once the page has it, and wait for the answer."""
    expect(page.get_by_text("keypoints of each person")).to_be_visible()
    grey = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    (folder / "grey.png").write_bytes(pictures.encoded(grey, "PNG"))
    page.locator("#file").set_input_files(folder / "grey.png")
    expect(page.get_by_text("Person 1")).to_be_visible()


def opacity(page: Page, x: float, y: float) -> int:
    """How opaque the overlay is at a place of the picture, 0 to 255."""
    alpha: int = page.evaluate(
        """([x, y]) => {
            const canvas = document.getElementById("overlay");
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
            copy.drawImage(canvas, 0, 0);
            return copy.getImageData(x * canvas.width, y * canvas.height, 1, 1).data[3];
        }""",
        [x / WIDTH, y / HEIGHT],
    )
    return alpha


def asks_for(page: Page, poses: Poses, boxes: np.ndarray) -> None:
    """Wait until the page asks for these boxes, to 2 pixels; it asks once no more changes come for a moment."""
    end = time.monotonic() + 60
    while np.shape(poses.asked[-1]) != boxes.shape or np.abs(poses.asked[-1] - boxes).max() > 2:
        assert time.monotonic() < end, poses.asked
        page.wait_for_timeout(50)


def test_the_skeleton_lies_over_the_picture(page: Page, poses: Poses) -> None:
    assert poses.asked == [[]]
    expect(page.get_by_role("img", name="Skeletons of 1 over the picture")).to_be_visible()
    # Asked from here: what waits within the page compiles its question there, which the page's policy forbids.
    eventually(lambda: page.evaluate(BOTH_AT_ONE_PLACE))
    shown = page.locator("#shown").bounding_box()
    assert shown is not None
    assert shown["width"] / shown["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.02)
    for y in (HEIGHT / 4, 3 * HEIGHT / 8, HEIGHT / 2):
        eventually(lambda y=y: opacity(page, WIDTH / 2, y) == 255)
    assert opacity(page, WIDTH / 2 + 40, 3 * HEIGHT / 8) == 0
    assert opacity(page, 2, 2) == 0  # a joint that was hardly seen is not drawn
    page.set_viewport_size({"width": 390, "height": 800})
    eventually(lambda: page.evaluate("document.getElementById('overlay').width < 400"))
    eventually(lambda: opacity(page, WIDTH / 2, 3 * HEIGHT / 8) == 255)


def test_a_picture_that_comes_right_after_the_model_is_asked_about_once(page: Page, tmp_path: Path) -> None:
    poses = Poses()
    held: list[Route] = []
    page.route("**/v1/pose?*", poses)
    page.route("**/metrics", lambda route: held.append(route))  # which the page reads after each choice
    page.get_by_label("Model").select_option("joints")
    show_grey(page, tmp_path)
    page.unroute("**/metrics")
    for route in held:
        route.continue_()
    page.wait_for_timeout(500)
    assert poses.asked == [[]]


def test_the_joints_are_a_table_too(page: Page, poses: Poses) -> None:
    page.get_by_text("Person 1").click()
    rows = page.get_by_role("row")
    expect(rows.nth(1)).to_have_text("head top2007590.0 %")
    expect(rows).to_have_count(4)
    expect(page.locator("#bars")).to_be_hidden()
    expect(page.get_by_label("Classes")).to_be_hidden()
    expect(page.locator("#announcement")).to_have_text("1 person found.")


def test_boxes_are_drawn_with_the_mouse(page: Page, poses: Poses) -> None:
    frame = page.locator("#boxes").bounding_box()
    assert frame is not None
    scale = frame["width"] / WIDTH

    def to(x: float, y: float) -> None:
        page.mouse.move(frame["x"] + x * scale, frame["y"] + y * scale)

    for x, y, width, height in ((20, 30, 100, 200), (200, 50, 150, 300)):
        to(x, y)
        page.mouse.down()
        to(x + width / 2, y + height / 2)
        to(x + width, y + height)
        page.mouse.up()
    expected = np.array([[20, 30, 100, 200], [200, 50, 150, 250]])  # no further than the picture
    asks_for(page, poses, expected)
    expect(page.get_by_text("Person 2")).to_be_visible()
    assert opacity(page, 70, 30 + 75) == 255
    assert "-F 'boxes=[[" in page.locator("#command-text").inner_text()
    page.get_by_role("button", name="Clear boxes").click()
    expect(page.get_by_text("Person 2")).to_be_hidden()
    assert poses.asked[-1] == []


def test_boxes_are_added_and_moved_by_keyboard(page: Page, poses: Poses) -> None:
    page.get_by_role("button", name="Add a box").press("Enter")
    box = page.get_by_role("group", name="Box 1: at 100, 30, 200 by 240 pixels")
    expect(box).to_be_focused()
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowLeft", "Shift+ArrowDown"):
        page.keyboard.press(key)
    moved = page.get_by_role("group", name="Box 1: at 108, 24, 192 by 246 pixels")
    expect(moved).to_be_focused()
    expect(page.get_by_role("img", name="Skeletons of 1 over the picture")).to_be_visible()
    asks_for(page, poses, np.array([[108, 24, 192, 246]]))
    page.keyboard.press("Delete")
    expect(page.get_by_role("button", name="Add a box")).to_be_focused()
    expect(page.locator(".box")).to_have_count(0)


def test_accessibility_rules_hold(page: Page, poses: Poses) -> None:
    page.get_by_text("Person 1").click()
    page.get_by_role("button", name="Add a box").click()
    found = Axe().run(page)
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found.response["violations"]] == []


def test_the_real_route_finds_what_was_painted(page: Page, tmp_path: Path) -> None:
    middles = {"head": (220, 60), "neck": (200, 120), "left_hand": (280, 130), "right_hand": (120, 140)}
    picture = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    for name, (x, y) in middles.items():
        ImageDraw.Draw(picture).ellipse((x - 18, y - 18, x + 18, y + 18), fill=DOT_COLOURS[name])
    (tmp_path / "dots.png").write_bytes(pictures.encoded(picture, "PNG"))
    page.locator("#file").set_input_files(tmp_path / "dots.png")
    expect(page.locator("#bars li")).to_have_count(3)
    page.get_by_label("Model").select_option("joints")
    page.get_by_text("Person 1").click()
    for name, middle in middles.items():
        cells = page.get_by_role("row", name=name.replace("_", " ")).get_by_role("cell").all_inner_texts()
        assert [float(cell) for cell in cells[:2]] == pytest.approx(middle, abs=WIDTH / 16 / 2 + 1)  # half a cell
    (neck_x, neck_y), (head_x, head_y) = middles["neck"], middles["head"]
    line = [opacity(page, (neck_x + head_x) / 2 + shift, (neck_y + head_y) / 2) for shift in range(-20, 21, 2)]
    assert max(line) == 255


def test_another_model_takes_the_skeleton_away(page: Page, poses: Poses) -> None:
    page.get_by_label("Model").select_option("colour")
    expect(page.locator("#bars li")).to_have_count(3)
    for name in ("#overlay", "#boxes", "#add-box", "#people"):
        expect(page.locator(name)).to_be_hidden()
