"""`signet predict` through a server, its formats, its progress bar and its exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.predict.answers import PredictError, side_by_side
from app.predict.remote import Remote
from tests.app.test_cli import signet
from tests.helpers import pictures
from tests.helpers.server import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty good pictures of different kinds in two folders, and three that are none."""
    where = tmp_path / "pictures"
    (where / "deep").mkdir(parents=True)
    makers = {".png": pictures.png, ".jpg": pictures.jpeg, ".webp": pictures.webp}
    for seed in range(20):
        suffix, make = list(makers.items())[seed % 3]
        place = where / "deep" if seed % 2 else where
        (place / f"picture{seed:02}{suffix}").write_bytes(make(seed=seed))
    (where / "cut.png").write_bytes(pictures.png()[:-600])
    (where / "empty.jpg").write_bytes(b"")
    (where / "text.jpg").write_text("no picture")
    return where


@pytest.mark.parametrize("server_too", [False, True], ids=["offline", "server"])
def test_a_folder_becomes_lines_in_order(
    server: Server, zoo: Path, folder: Path, tmp_path: Path, server_too: bool
) -> None:
    out = tmp_path / "answers.jsonl"
    where = ("--url", str(server.client.base_url)) if server_too else ("--models", zoo)
    ended = signet("predict", folder, *where, "--model", "random", "--top-k", "2", "--out", out)
    assert (ended.returncode, ended.stdout) == (1, "")
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    expected = sorted(path for path in folder.rglob("*") if path.is_file())
    assert [answer["path"] for answer in answers] == [str(path) for path in expected]
    for answer, path in zip(answers, expected, strict=True):
        alone = server.classify(path.read_bytes(), model="random", top_k=2).json()
        if path.name in ("cut.png", "empty.jpg", "text.jpg"):
            assert set(answer) == {"path", "error"}
            assert f"signet: {path}: {answer['error']}" in ended.stderr.splitlines()
            assert path.name == "empty.jpg" or answer["error"] == alone["detail"]
            continue
        assert answer["image"] == alone["image"]
        assert [entry["label"] for entry in answer["predictions"]] == [entry["label"] for entry in alone["predictions"]]
        scores = [entry["score"] for entry in alone["predictions"]]
        assert [entry["score"] for entry in answer["predictions"]] == pytest.approx(scores, abs=1e-5)
    assert ended.stderr.splitlines()[-1] == "signet: 3 of 23 pictures failed"


def test_csv_has_a_row_a_class(server: Server, folder: Path) -> None:
    good = folder / "picture00.png"
    ended = signet("predict", good, folder / "text.jpg", "--url", str(server.client.base_url), "--format", "csv")
    rows = list(csv.DictReader(ended.stdout.splitlines()))
    answer = server.classify(good.read_bytes(), top_k=3).json()
    assert [(row["path"], row["rank"], row["label"], int(row["index"]), float(row["score"])) for row in rows[:3]] == [
        (str(good), str(rank), entry["label"], entry["index"], entry["score"])
        for rank, entry in enumerate(answer["predictions"], 1)
    ]
    assert rows[3]["error"].startswith("The data begins like none of")
    assert len(rows) == 4


@pytest.mark.parametrize("server_too", [False, True], ids=["offline", "server"])
@pytest.mark.parametrize("boxes", [[], ["10,8,30,36", "20.5,4,40,40"]], ids=["whole", "boxes"])
def test_a_pose_model_gives_keypoints(
    server: Server, zoo: Path, folder: Path, boxes: list[str], server_too: bool
) -> None:
    good = sorted(folder.glob("deep/picture*"))[:3]
    where = ("--url", str(server.client.base_url)) if server_too else ("--models", zoo)
    given = [word for box in boxes for word in ("--box", box)]
    ended = signet("predict", *good, *where, "--model", "dots", *given, "--format", "csv")
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = list(csv.DictReader(ended.stdout.splitlines()))
    expected = []
    for path in good:
        parameters = {"model": "dots", "boxes": boxes}
        reply = server.client.post("/v1/pose", content=path.read_bytes(), params=parameters)
        for number, person in enumerate(reply.json()["people"], 1):
            for point in person["keypoints"]:
                expected.append([str(path), str(number), point["name"], point["x"], point["y"], point["score"]])
    found = [[r["path"], r["person"], r["keypoint"], float(r["x"]), float(r["y"]), float(r["score"])] for r in rows]
    assert found == expected


@pytest.mark.parametrize("server_too", [False, True], ids=["offline", "server"])
def test_people_are_drawn_as_the_service_draws_them(
    server: Server, zoo: Path, tmp_path: Path, server_too: bool
) -> None:
    photo, drawn = tmp_path / "photo.jpg", tmp_path / "drawn.png"
    photo.write_bytes(pictures.oriented(pictures.random_pixels(90, 120), 6, "JPEG"))
    where = ("--url", str(server.client.base_url)) if server_too else ("--models", zoo)
    ended = signet("predict", "--pose", photo, *where, "--box", "10,8,90,70", "-o", drawn)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "1 person" in ended.stdout
    served = server.pose(photo.read_bytes(), boxes="10,8,90,70", visualize="true").content
    mine, theirs = (np.asarray(Image.open(source)).astype(int) for source in (drawn, io.BytesIO(served)))
    assert mine.shape == theirs.shape == (90, 120, 3)
    assert np.abs(mine - theirs).mean() < 0.5  # points are rounded to a hundredth of a pixel
    assert np.abs(mine - pictures.random_pixels(90, 120)).max() > 100


def test_a_picture_that_is_decoded_small_is_drawn_so(server: Server, tmp_path: Path) -> None:
    """It has more pixels than are decoded at full size."""
    photo, drawn = tmp_path / "photo.jpg", tmp_path / "drawn.png"
    photo.write_bytes(pictures.jpeg(4800, 6400))
    ended = signet("predict", "--pose", photo, "--url", str(server.client.base_url), "-o", drawn)
    assert (ended.returncode, ended.stderr) == (0, "")
    served = server.pose(photo.read_bytes(), visualize="true").content
    mine, theirs = (np.asarray(Image.open(source)).astype(int) for source in (drawn, io.BytesIO(served)))
    assert mine.shape == theirs.shape == (1200, 1600, 3)
    assert np.abs(mine - theirs).mean() < 0.5


def test_names_of_files_keep_their_bytes(server: Server, tmp_path: Path) -> None:
    photo, out = tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "answers.csv"
    photo.write_bytes(pictures.png())
    ended = signet("predict", photo, "--url", str(server.client.base_url), "--out", out, "--top-k", "1")
    assert ended.returncode == 0
    assert os.fsencode(photo) in out.read_bytes()
    command = [sys.executable, "-m", "app.cli", "predict", str(photo), "--url", str(server.client.base_url)]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as the standard output is in most locales
    for kind in ("jsonl", "csv", "table"):
        printed = subprocess.run([*command, "--format", kind], env=strict, capture_output=True, check=True)
        assert os.fsencode(photo) in printed.stdout


@pytest.mark.parametrize("server_too", [False, True], ids=["offline", "server"])
def test_a_name_that_cannot_be_looked_at_fails_alone(server: Server, zoo: Path, folder: Path, server_too: bool) -> None:
    where = ("--url", str(server.client.base_url)) if server_too else ("--models", zoo)
    ended = signet("predict", folder / ("x" * 300), folder / "picture00.png", *where, "--format", "csv")
    assert ended.returncode == 1
    assert "xxx: File name too long" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"{folder / 'picture00.png'},1," in ended.stdout


def test_whoever_stops_reading_is_not_told(server: Server, folder: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "predict", str(folder), "--url", str(server.client.base_url), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        told = running.stderr.read().decode()
    assert running.returncode == 1
    assert "pipe" not in told.lower()
    assert "Traceback" not in told


def test_all_good_is_status_zero(server: Server, folder: Path) -> None:
    ended = signet("predict", folder / "deep", "--url", str(server.client.base_url))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 10


def test_a_progress_bar_shows_on_a_terminal(zoo: Path, folder: Path, tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    program = "import sys; sys.argv[0] = 'signet'; from app.cli import main; main()"
    arguments = ["predict", str(folder), "--models", str(zoo), "--out", str(tmp_path / "answers.csv")]
    seen = b""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stderr=terminal, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(terminal)
        while True:
            try:
                seen += os.read(screen, 65536)
            except OSError:  # Linux says so when the other side of a terminal is closed
                break
    os.close(screen)
    assert process.returncode == 1
    assert b"23/23" in seen
    assert b"text.jpg" in seen


def test_the_key_is_sent_and_asked_for(zoo: Path, folder: Path) -> None:
    running = Server(zoo, api_keys="sesame")
    try:
        url, picture = str(running.client.base_url), folder / "picture00.png"
        refused = signet("predict", picture, "--url", url)
        assert refused.returncode == 2
        assert "Send a valid key" in refused.stderr
        assert signet("predict", picture, "--url", url, "--api-key", "sesame").returncode == 0
        assert signet("predict", picture, "--url", url, SIGNET_API_KEY="sesame").returncode == 0
    finally:
        running.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: "),
        (["--url", "nonsense"], "nonsense: "),
        (["--url", "SERVER", "--model", "nobody"], "There is no model 'nobody'."),
        (["--url", "SERVER", "--model", "../x"], "There is no"),
        (["--url", "SERVER", "--models", "."], "--models"),
        (["--url", "SERVER", "--box", "1,2,3,4"], "--box is for pose models"),
        (["--url", "SERVER", "--model", "dots", "--box", "1,2,3"], "--box: expected x,y,width,height"),
        (["--url", "SERVER", "--pose", "--model", "random"], "--pose is for pose models"),
        (["--url", "SERVER", "--pose", "--out", "a.png"], "is a picture, of one; there are 23"),
        (["--url", "SERVER", "--api-key", "schl\u00fcssel"], "--api-key or SIGNET_API_KEY: a key has characters"),
        (["--url", "SERVER", "--out", "/nowhere/a.csv"], "/nowhere/a.csv: No such file or directory"),
    ],
)
def test_what_cannot_begin_is_status_two(server: Server, folder: Path, arguments: list[str], told: str) -> None:
    given = [str(server.client.base_url) if word == "SERVER" else word for word in arguments]
    ended = signet("predict", folder, *given)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_batch_that_is_too_large_is_sent_one_by_one(zoo: Path, folder: Path) -> None:
    running = Server(zoo, max_batch_images=2)
    try:
        with Remote(str(running.client.base_url), top_k=1) as remote:
            answers = list(remote.answers(sorted(folder.glob("picture*"))))
        assert len(answers) == 10
        assert all(len(answer["predictions"]) == 1 for answer in answers)
    finally:
        running.close()


def test_the_same_picture_twice_is_answered_twice(server: Server, folder: Path) -> None:
    with Remote(str(server.client.base_url), top_k=1) as remote:
        first, second = remote.answers([folder / "picture00.png"] * 2)
    assert first == second
    assert first["predictions"]


class _Busy(BaseHTTPRequestHandler):
    """A server that is full twice and then answers, and that is broken for another model."""

    protocol_version = "HTTP/1.1"
    refusals = 2

    def do_GET(self) -> None:
        self._send(200, {"default": "m", "task": "classification"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).refusals:
            type(self).refusals -= 1
            self._send(429, {"detail": "full"}, {"Retry-After": "0"})
        else:
            self._send(200, {"predictions": [{"label": "x", "index": 0, "score": 1.0}], "image": {}})

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Busy) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_full_server_is_asked_again(busy: str, folder: Path) -> None:
    with Remote(busy, top_k=1, jobs=1) as remote:
        (answer,) = remote.answers([folder / "picture00.png"])
    assert answer["predictions"][0]["label"] == "x"
    assert _Busy.refusals == 0


def test_a_server_that_is_something_else_is_told(server: Server) -> None:
    with pytest.raises(PredictError, match="livez"):
        Remote(f"{server.client.base_url}/livez", top_k=1)


def test_work_side_by_side_keeps_its_order_and_does_not_run_ahead() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    results = side_by_side(work, range(1000), workers=4)
    assert next(results) == 0
    assert len(begun) <= 16
    assert list(results) == [item * item for item in range(1, 1000)]
    with ThreadPoolExecutor() as pool:  # closing early leaves nothing running
        pool.submit(results.close).result(10)


def test_a_server_hears_how_long_its_answer_is_awaited(server: Server, tmp_path: Path) -> None:
    photo, second = tmp_path / "photo.jpg", tmp_path / "second.jpg"
    for path in (photo, second):
        path.write_bytes(pictures.jpeg(2000, 2500))
    url = ("--url", str(server.client.base_url), "--model", "random")
    ended = signet("predict", photo, second, *url, "--timeout", "0.001", "--json")
    assert ended.returncode == 1
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == 2
    assert all("was not processed" in answer["error"] for answer in answers)
    ended = signet("predict", photo, second, *url, "--timeout", "600", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    for wrong in (("--timeout", "0", *url), ("--timeout", "5")):
        assert signet("predict", photo, *wrong).returncode == 2
