"""The routes of the running service: answers, cards, metrics, logs and documentation."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.xnor import Session
from tests.helpers import pictures
from tests.helpers.packed import LABELS
from tests.helpers.requests import MULTIPART, multipart, part
from tests.helpers.server import Server, eventually

PIXELS = pictures.random_pixels(32, 32)
PNG = pictures.encoded(Image.fromarray(PIXELS), "PNG")


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64))
    return weights / weights.sum()


@pytest.fixture(scope="module")
def scores(zoo: Path) -> np.ndarray:
    """What the newest `random` model says of PIXELS, straight from the engine."""
    session = Session.load(zoo / "random" / "2" / "model.safetensors")
    return softmax(session.run(PIXELS[None])["logits"][0])


def test_a_picture_gets_its_classes(server: Server, scores: np.ndarray) -> None:
    reply = server.classify(PNG, top_k=10)
    assert reply.status_code == 200
    answer = reply.json()
    assert set(answer) == {"model", "version", "image", "predictions", "timing_ms"}
    assert (answer["model"], answer["version"]) == ("random", "2")
    assert answer["image"] == {"width": 32, "height": 32}
    order = np.argsort(-scores)
    assert [entry["index"] for entry in answer["predictions"]] == order.tolist()
    assert [entry["label"] for entry in answer["predictions"]] == [LABELS[index] for index in order]
    assert [entry["score"] for entry in answer["predictions"]] == pytest.approx(scores[order].tolist(), rel=1e-4)
    timing = answer["timing_ms"]
    assert set(timing) == {"decode", "preprocess", "queue", "infer", "postprocess", "total"}
    assert all(value >= 0 for value in timing.values())
    assert sum(timing.values()) - timing["total"] <= timing["total"] + 0.01


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/octet-stream", None])
def test_a_raw_body_is_taken_whatever_its_type(server: Server, content_type: str | None, scores: np.ndarray) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    reply = server.client.post("/v1/classify", content=PNG, headers=headers)
    assert reply.json()["predictions"][0]["index"] == int(np.argmax(scores))


def test_a_form_is_taken_with_its_parameters(server: Server) -> None:
    body = multipart([part("model", b"colour"), part("image", PNG, filename="a.png"), part("top_k", b"2")])
    reply = server.client.post("/v1/classify", content=body, headers={"Content-Type": MULTIPART})
    assert reply.json()["model"] == "colour"
    assert len(reply.json()["predictions"]) == 2


def test_the_query_wins_over_the_form(server: Server) -> None:
    body = multipart([part("model", b"colour"), part("image", PNG), part("top_k", b"2")])
    reply = server.client.post("/v1/classify?top_k=1", content=body, headers={"Content-Type": MULTIPART})
    assert (reply.json()["model"], len(reply.json()["predictions"])) == ("colour", 1)


def test_the_forms_of_an_http_library_work(server: Server) -> None:
    reply = server.client.post("/v1/classify", files={"image": ("cat.png", PNG, "image/png")}, data={"top_k": "3"})
    assert len(reply.json()["predictions"]) == 3


@pytest.mark.parametrize(("top_k", "given"), [(None, 5), (1, 1), (10, 10), (11, 10), (1000, 10)])
def test_top_k_is_clipped_to_the_classes(server: Server, top_k: int | None, given: int) -> None:
    parameters = {} if top_k is None else {"top_k": top_k}
    assert len(server.classify(PNG, **parameters).json()["predictions"]) == given


def test_versions_are_chosen_and_the_highest_is_the_default(server: Server) -> None:
    answers = {version: server.classify(PNG, version=version).json() for version in ("1", "2")}
    assert answers["1"]["version"] == "1"
    assert answers["1"]["predictions"] != answers["2"]["predictions"]
    assert server.classify(PNG).json()["predictions"] == answers["2"]["predictions"]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_sizes_are_those_of_the_upright_picture(server: Server, orientation: int) -> None:
    upright = pictures.random_pixels(40, 72)
    plain = server.classify(pictures.oriented(upright, 1)).json()
    turned = server.classify(pictures.oriented(upright, orientation)).json()
    assert turned["image"] == {"width": 72, "height": 40}
    assert turned["predictions"] == plain["predictions"]


def test_parallel_clients_get_their_own_answers(server: Server) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 3), dtype=np.uint8)

    def ask(colour: np.ndarray) -> dict[str, float]:
        image = Image.new("RGB", (32, 32), tuple(int(channel) for channel in colour))
        reply = server.classify(pictures.encoded(image, "PNG"), model="colour")
        return {entry["label"]: entry["score"] for entry in reply.json()["predictions"]}

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, colours))
    for colour, answer in zip(colours, answers, strict=True):
        expected = softmax(10 * colour.astype(np.float64) / 255)
        assert [answer[name] for name in ("red", "green", "blue")] == pytest.approx(expected.tolist(), rel=1e-3)


def test_the_list_of_models(server: Server) -> None:
    listed = server.client.get("/v1/models").json()
    assert listed["default"] == "random"
    assert [entry["name"] for entry in listed["models"]] == ["colour", "dots", "random"]
    assert [v["version"] for v in listed["models"][2]["versions"]] == ["1", "2"]
    assert {v["state"] for entry in listed["models"] for v in entry["versions"]} == {"ready"}


def test_a_models_card(server: Server, zoo: Path) -> None:
    card = server.client.get("/v1/models/random").json()
    assert (card["version"], card["task"], card["state"]) == ("2", "classification", "ready")
    assert card["labels"] == LABELS
    assert (card["input"]["height"], card["input"]["width"]) == (32, 32)
    # conv 3 -> 70 at 32 x 32, head 70 -> 10; binary conv 70 -> 70 at 16 x 16.
    assert card["macs"] == {"real": 32 * 32 * 27 * 70 + 700, "binary": 16 * 16 * 9 * 70 * 70}
    sizes = card["sizes"]
    assert sizes["file_bytes"] == (zoo / "random" / "2" / "model.safetensors").stat().st_size
    assert sizes["ratio"] == pytest.approx(sizes["float32_bytes"] / sizes["packed_bytes"], abs=0.01)
    assert card["provenance"]["metrics"]["top1"] == 0.1
    assert server.client.get("/v1/models/random?version=1").json()["version"] == "1"
    assert server.client.get("/v1/models/random?version=3").status_code == 404


def test_health_and_index(server: Server) -> None:
    assert server.client.get("/livez").json() == {"status": "live"}
    assert server.client.get("/readyz").json() == {"status": "ready"}
    index = server.client.get("/").json()
    assert index["models"] == ["colour", "dots", "random"]
    for link in index["links"].values():
        assert server.client.get(link).status_code in (200, 405)


def test_metrics_count_what_happened(server: Server) -> None:
    labels = {"route": "/v1/classify", "model": "colour", "status": "200"}
    requests = server.metric("signet_requests_total", **labels)
    images = server.metric("signet_images_total", model="colour")
    stages = ("decode", "preprocess", "queue", "infer", "postprocess")
    counts = {stage: server.metric("signet_stage_seconds_count", stage=stage) for stage in stages}
    for _ in range(3):
        server.classify(PNG, model="colour")
    eventually(lambda: server.metric("signet_requests_total", **labels) == requests + 3)
    assert server.metric("signet_images_total", model="colour") == images + 3
    for stage in stages:
        assert server.metric("signet_stage_seconds_count", stage=stage) == counts[stage] + 3
    assert server.metric("signet_request_seconds_count", route="/v1/classify") >= 3
    assert server.metric("signet_request_seconds_sum", route="/v1/classify") > 0


def test_metrics_describe_the_models_and_the_process(server: Server) -> None:
    for version in ("1", "2"):
        assert server.metric("signet_model_loaded", model="random", version=version) == 1
    card = server.client.get("/v1/models/random").json()["sizes"]
    for kind, field in (("packed", "packed_bytes"), ("float32_equivalent", "float32_bytes")):
        assert server.metric("signet_model_bytes", model="random", version="2", kind=kind) == card[field]
    assert server.metric("signet_model_bytes", model="random", kind="resident") > 0
    assert server.metric("signet_arena_bytes", model="random") > 0
    assert server.metric("process_resident_memory_bytes") == pytest.approx(server.rss_bytes, rel=0.1)
    assert server.metric("signet_build_info") == 1


def test_metric_labels_are_route_templates(server: Server) -> None:
    for index in range(20):
        server.client.get(f"/nothing/{index}")
        server.client.get(f"/v1/models/name-{index}")
    text = server.client.get("/metrics").text
    assert "nothing" not in text
    assert "name-" not in text
    assert 'route="/v1/models/{name}"' in text
    assert "# TYPE signet_request_seconds histogram" in text


def test_request_ids_are_kept_made_and_logged(server: Server) -> None:
    given = server.client.get("/livez", headers={"X-Request-ID": "my-request.1"})
    assert given.headers["x-request-id"] == "my-request.1"
    for harmful in ("a b", "x" * 65, "a\tb", '"quoted"'):
        made = server.client.get("/livez", headers={"X-Request-ID": harmful}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)
    reply = server.classify(PNG)

    def logged() -> list[dict[str, object]]:
        return [e for e in server.log_events() if e.get("request_id") == reply.headers["x-request-id"]]

    eventually(lambda: len(logged()) == 1)
    (event,) = logged()
    expected = {"event": "request", "route": "/v1/classify", "method": "POST", "status": 200, "model": "random"}
    assert expected.items() <= event.items()
    assert isinstance(event["duration_ms"], float)


def test_every_line_of_the_log_is_json(server: Server) -> None:
    events = server.log_events()
    assert {"time", "level", "logger", "event"} <= set.intersection(*(set(event) for event in events))
    assert any(event["logger"].startswith("uvicorn") for event in events)
    assert not [event for event in events if "exception" in event]


@pytest.mark.parametrize("path", ["/livez", "/nothing", "/v1/models"])
def test_security_headers(server: Server, path: str) -> None:
    headers = server.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


def test_documentation(server: Server) -> None:
    page = server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "openapi.json" in server.client.get("/docs/docs.js").text
    schema = server.client.get("/openapi.json").json()
    ours = {
        "/v1/classify",
        "/v1/classify/batch",
        "/v1/pose",
        "/v1/pose/batch",
        "/v1/models",
        "/v1/models/{name}",
        "/livez",
        "/readyz",
        "/metrics",
        "/",
    }
    of_model = {"", "/ready", "/config", "/stats", "/infer"}
    v2 = {"", "/health/live", "/health/ready", "/models/stats", "/repository/index"}
    v2 |= {f"/repository/models/{{name}}/{action}" for action in ("load", "unload")}
    v2 |= {f"/models/{{name}}{end}" for end in of_model} | {
        f"/models/{{name}}/versions/{{version}}{e}" for e in of_model
    }
    assert ours | {f"/v2{path}" for path in v2} == set(schema["paths"])
    classify = schema["paths"]["/v1/classify"]["post"]
    assert {"200", "400", "404", "408", "413", "415", "422", "429", "503", "504"} <= set(classify["responses"])
    assert "multipart/form-data" in classify["requestBody"]["content"]
    assert {entry["name"] for entry in classify["parameters"]} == {"model", "version", "top_k", "timeout_ms"}
    assert "ProblemAnswer" in schema["components"]["schemas"]
    assert schema["components"]["schemas"]["ClassifyAnswer"]["examples"]


def test_references_of_the_schema_resolve(server: Server) -> None:
    response = server.client.get("/openapi.json")
    known = response.json()["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', response.text):
        assert name in known


def test_keep_alive_connections_serve_many_requests(server: Server) -> None:
    with server.connection() as sock:
        from tests.helpers.requests import request
        from tests.helpers.server import read_reply

        for _ in range(5):
            sock.sendall(request(body=PNG))
            assert read_reply(sock).status == 200


def test_a_start_is_cheap_and_memory_small(zoo: Path) -> None:
    server = Server(zoo)
    try:
        assert server.cpu_s < 5
        server.classify(pictures.jpeg(375, 500))
        assert server.rss_bytes < 120 << 20
    finally:
        server.close()


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/v1/models", "/v2", "/openapi.json"])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    got, head = server.client.get(path), server.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    with server.connection() as sock:  # nothing follows the head: the next answer on the connection is a whole one
        for _ in range(2):
            sock.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += sock.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
    reply = server.client.head("/v1/classify")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
