"""Several pictures in one request: each is answered as it would be alone, the bad ones by their error."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import pictures
from tests.helpers.requests import MULTIPART, multipart, part
from tests.helpers.server import Server

FILES: list[bytes] = [
    pictures.jpeg(seed=1),
    pictures.png(seed=2),
    pictures.webp(seed=3),
    pictures.png(1, 1),
    pictures.jpeg(375, 500, seed=4),
    b"",
    b"no picture",
    b"http://127.0.0.1:9/cat.jpg",
    pictures.png()[:-600],
    pictures.pixel_bomb(9000),
]
Single = Callable[[int], Any]


@pytest.fixture(scope="module")
def single(server: Server) -> Single:
    """The answer to one file alone."""

    @cache
    def ask(index: int) -> Any:
        body = multipart([part("image", FILES[index])])
        return server.client.post("/v1/classify?top_k=10", content=body, headers={"Content-Type": MULTIPART}).json()

    return ask


def ask_batch(server: Server, files: list[bytes], **parameters: object) -> Any:
    body = multipart([part("image", data) for data in files])
    return server.client.post(
        "/v1/classify/batch",
        content=body,
        params=parameters,  # type: ignore[arg-type]
        headers={"Content-Type": MULTIPART},
    )


@given(chosen=st.lists(st.integers(0, len(FILES) - 1), min_size=1, max_size=32))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_answers_as_its_pictures_do_alone(server: Server, single: Single, chosen: list[int]) -> None:
    reply = ask_batch(server, [FILES[index] for index in chosen], top_k=10)
    assert reply.status_code == 200
    results = reply.json()["results"]
    assert [entry["index"] for entry in results] == list(range(len(chosen)))
    for entry, index in zip(results, chosen, strict=True):
        alone = single(index)
        if "predictions" in alone:
            assert entry["error"] is None
            assert entry["predictions"] == alone["predictions"]
            assert entry["image"] == alone["image"]
        else:
            assert entry["predictions"] is entry["image"] is None
            assert entry["error"] == {key: alone[key] for key in ("type", "title", "status", "detail")}


def test_one_bad_picture_leaves_the_others_answered(server: Server) -> None:
    answer = ask_batch(server, [FILES[0], FILES[6], FILES[1]], model="colour", top_k=2).json()
    assert (answer["model"], answer["version"]) == ("colour", "1")
    assert [len(entry["predictions"] or []) for entry in answer["results"]] == [2, 0, 2]
    assert answer["results"][1]["error"]["status"] == 415
    assert set(answer["timing_ms"]) == {"decode", "preprocess", "queue", "infer", "postprocess", "total"}


def test_parameters_may_be_parts_of_the_form(server: Server) -> None:
    body = multipart([part("model", b"colour"), part("image", FILES[0]), part("top_k", b"1"), part("image", FILES[1])])
    reply = server.client.post("/v1/classify/batch", content=body, headers={"Content-Type": MULTIPART})
    assert reply.json()["model"] == "colour"
    assert [len(entry["predictions"]) for entry in reply.json()["results"]] == [1, 1]


def test_the_forms_of_an_http_library_work(server: Server) -> None:
    files = [("image", ("a.png", FILES[1], "image/png")), ("image", ("b.jpg", FILES[0], "image/jpeg"))]
    assert len(server.client.post("/v1/classify/batch", files=files).json()["results"]) == 2


def test_images_are_counted_not_requests(server: Server) -> None:
    images = server.metric("signet_images_total", model="colour")
    ask_batch(server, [FILES[0], FILES[6], FILES[1]], model="colour")
    assert server.metric("signet_images_total", model="colour") == images + 2
    assert server.metric("signet_queue_images") == 0


def test_a_batch_takes_its_places_in_the_queue(zoo: Any) -> None:
    running = Server(zoo, max_queue_images=4, max_batch_images=16)
    try:
        assert ask_batch(running, FILES[:4]).status_code == 200
        refused = ask_batch(running, FILES[:5])
        assert refused.status_code == 413
        assert refused.json()["detail"] == "A batch may have at most 4 pictures."
    finally:
        running.close()
