"""Several worker processes behind one socket, and that from outside they are one service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from models.xnor import Session
from tests.helpers import packed, pictures
from tests.helpers.server import Server, eventually

PNG = pictures.png(32, 32)
PIXELS = np.stack([pictures.random_pixels(32, 32, seed) for seed in range(2)])
ADMIN = {"X-API-Key": "root"}
WORKERS = 2


def workers_of(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def all_serve(server: Server) -> bool:
    """Whether so many workers serve; the one that was asked may be the one that was killed."""
    try:
        return server.metric("signet_workers") == WORKERS
    except httpx.TransportError:
        return False


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    packed.write_random(tmp_path / "zoo" / "net" / "1" / "model.safetensors", seed=1)
    return tmp_path / "zoo"


@pytest.fixture
def several(repository: Path) -> Iterator[Server]:
    running = Server(repository, workers=WORKERS, admin_keys="root")
    eventually(lambda: all_serve(running))
    yield running
    running.close()


def ask_afresh(server: Server) -> np.ndarray:
    """Logits over a fresh connection, which any worker may take."""
    headers = {"Inference-Header-Content-Length": "0"}
    url = f"http://127.0.0.1:{server.port}/v2/models/net/infer"
    reply = httpx.post(url, content=PIXELS.tobytes(), headers=headers, timeout=60)
    assert reply.status_code == 200, reply.text
    length = int(reply.headers["inference-header-content-length"])
    return np.frombuffer(reply.content[length:], np.float32).reshape(len(PIXELS), 10)


def ask_all(server: Server, times: int = 24) -> list[np.ndarray]:
    """So many answers, many at once, so that no worker is left out."""
    with ThreadPoolExecutor(8) as clients:
        return list(clients.map(lambda _: ask_afresh(server), range(times)))


def expected(repository: Path) -> np.ndarray:
    return Session.load(repository / "net" / "1" / "model.safetensors").run(PIXELS)["logits"]


def test_counts_are_those_of_all_workers_and_outlive_a_killed_one(several: Server) -> None:
    route = {"route": "/v2/models/{name}/infer", "status": "200"}
    ask_all(several)
    eventually(lambda: several.metric("signet_requests_total", **route) == 24)
    for name, value in (
        ("signet_images_total", 48),
        ("signet_batch_images_count", 24),
        ("signet_in_flight", 1),
        ("signet_queue_images", 0),
        ("signet_build_info", 1),
    ):
        assert several.metric(name) == value, name
    statistics = several.client.get("/v2/models/net/stats").json()["model_stats"]
    assert [(entry["inference_count"], entry["execution_count"]) for entry in statistics] == [(48, 24)]
    cpu_s = several.metric("process_cpu_seconds_total")

    victim = workers_of(several)[0]
    victim.kill()
    eventually(lambda: victim.pid not in [worker.pid for worker in workers_of(several)])
    eventually(lambda: all_serve(several))
    assert several.metric("signet_requests_total", **route) == 24
    assert several.metric("signet_in_flight") == 1
    assert several.metric("process_cpu_seconds_total") >= cpu_s
    ask_all(several)
    eventually(lambda: several.metric("signet_requests_total", **route) == 48)
    assert several.metric("signet_images_total") == 96


def test_sizes_and_memory_are_those_of_all_processes(several: Server, repository: Path) -> None:
    session = Session.load(repository / "net" / "1" / "model.safetensors", threads=1)
    assert several.metric("signet_model_loaded", model="net", version="1") == 1
    packed_bytes = several.metric("signet_model_bytes", model="net", kind="packed")
    assert packed_bytes == session.file.header.sizes.packed_bytes
    session.run(PIXELS[:1])
    resident = several.metric("signet_model_bytes", model="net", kind="resident")
    assert resident == pytest.approx(WORKERS * session.resident_bytes, rel=0.2)
    assert several.metric("process_resident_memory_bytes") == pytest.approx(several.tree_pss_bytes, rel=0.1)
    alone = workers_of(several)[0].memory_info().rss
    assert several.tree_pss_bytes < (1 + WORKERS) * alone  # the program's own memory is shared


def test_a_worker_killed_mid_request_costs_each_client_one_request_at_most(slow_zoo: Path) -> None:
    running = Server(slow_zoo, workers=WORKERS, threads=1)
    done, failures = threading.Event(), [0] * 4
    answered = [0] * 4

    def client(index: int) -> None:
        while not done.is_set():
            try:
                reply = httpx.post(f"http://127.0.0.1:{running.port}/v1/classify", content=PNG, timeout=60)
                assert reply.status_code == 200
                answered[index] += 1
            except httpx.TransportError:
                failures[index] += 1

    clients = [threading.Thread(target=client, args=(index,)) for index in range(4)]
    try:
        eventually(lambda: all_serve(running))
        for thread in clients:
            thread.start()
        eventually(lambda: min(answered) > 0)
        victim = max(workers_of(running), key=lambda worker: worker.cpu_times().user)
        victim.kill()
        seen = list(answered)
        eventually(lambda: all_serve(running) and all(now > then for now, then in zip(answered, seen, strict=True)))
    finally:
        done.set()
        for thread in clients:
            thread.join()
    try:
        assert max(failures) <= 1
        assert sum(failures) >= 1
        assert victim.pid not in [worker.pid for worker in workers_of(running)]
        eventually(lambda: running.metric("signet_in_flight") == 1)
        assert running.metric("signet_queue_images") == 0
    finally:
        running.close()


def test_a_load_holds_for_all_workers_and_a_broken_one_for_none(several: Server, repository: Path) -> None:
    path, before = repository / "net" / "1" / "model.safetensors", expected(repository)
    load = "/v2/repository/models/net/load"
    packed.write_random(path, seed=2)
    assert several.client.post(load, headers=ADMIN).status_code == 200
    after = expected(repository)
    assert not np.array_equal(before, after)
    for answer in ask_all(several):
        np.testing.assert_array_equal(answer, after)
    good = path.read_bytes()
    path.with_name("aside").write_bytes(good[:-100])
    path.with_name("aside").replace(path)
    assert several.client.post(load, headers=ADMIN).status_code == 422
    for answer in ask_all(several):
        np.testing.assert_array_equal(answer, after)


def test_an_unload_holds_for_all_workers_and_for_those_that_come(several: Server) -> None:
    def statuses() -> set[int]:
        url = f"http://127.0.0.1:{several.port}/v1/classify"
        with ThreadPoolExecutor(8) as clients:
            return set(clients.map(lambda _: httpx.post(url, content=PNG, timeout=60).status_code, range(24)))

    assert several.client.post("/v2/repository/models/net/unload", headers=ADMIN).status_code == 200
    assert statuses() == {503}
    victim = workers_of(several)[0]
    victim.kill()
    eventually(lambda: victim.pid not in [worker.pid for worker in workers_of(several)])
    eventually(lambda: all_serve(several))
    assert statuses() == {503}
    assert several.metric("signet_model_loaded", model="net") == 0
    assert several.client.post("/v2/repository/models/net/load", headers=ADMIN).status_code == 200
    assert statuses() == {200}


def test_sigterm_under_load_answers_all_and_leaves_nothing_behind(slow_zoo: Path, tmp_path: Path) -> None:
    running = Server(slow_zoo, workers=WORKERS, threads=1, drain_timeout_s=600)
    eventually(lambda: all_serve(running))
    processes = workers_of(running)
    try:
        with ThreadPoolExecutor(4) as clients:
            route, files = "/v1/classify/batch", [("image", PNG)] * 4
            pending = [clients.submit(running.client.post, route, files=files) for _ in range(4)]
            done = {"route": route, "status": "200"}
            eventually(
                lambda: running.metric("signet_requests_total", **done) + running.metric("signet_in_flight") >= 5
            )
            running.process.send_signal(signal.SIGTERM)
            assert {future.result().status_code for future in pending} == {200}
        assert running.process.wait(60) == 0
        assert not [process for process in processes if process.is_running()]
    finally:
        running.close()


def test_workers_end_with_their_supervisor(several: Server) -> None:
    processes = workers_of(several)
    several.process.kill()
    eventually(lambda: not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


def test_the_rate_limit_is_one_over_all_workers(repository: Path) -> None:
    running = Server(repository, workers=WORKERS, rate_limit_per_s=1 / 600, rate_limit_burst=7)
    try:
        eventually(lambda: all_serve(running))
        with ThreadPoolExecutor(8) as clients:
            url = f"http://127.0.0.1:{running.port}/v1/models"
            statuses = list(clients.map(lambda _: httpx.get(url, timeout=60).status_code, range(24)))
        assert sorted(statuses) == [200] * 7 + [429] * 17
    finally:
        running.close()


def test_workers_that_cannot_start_end_the_service(repository: Path) -> None:
    program = "import app.main; app.main.Gate = None; from app.cli import main; main()"
    arguments = ["serve", "--workers", "2", "--port", "0", "--models", str(repository)]
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "object is not callable" in ended.stderr
    assert all(json.loads(line) for line in ended.stderr.splitlines())
