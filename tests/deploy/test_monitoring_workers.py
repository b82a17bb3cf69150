"""A real Prometheus over a service of several workers, one of which is killed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deploy.test_monitoring import Prometheus, needs_prometheus
from tests.helpers import packed, pictures
from tests.helpers.server import Server, eventually

WORKERS = 2
JPEG = pictures.jpeg()
ANSWERED = 'sum(signet_requests_total{route="/v1/classify",status="200"})'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    packed.write_random(tmp_path / "random" / "1" / "model.safetensors")
    running = Server(tmp_path, workers=WORKERS)
    eventually(lambda: running.metric("signet_workers") == WORKERS)
    yield running
    running.close()


def ask(server: Server, times: int) -> None:
    """So many requests over connections of their own, so that all workers get some."""
    url = f"http://127.0.0.1:{server.port}/v1/classify"
    with ThreadPoolExecutor(4) as clients:
        statuses = list(clients.map(lambda _: httpx.post(url, content=JPEG, timeout=60).status_code, range(times)))
    assert set(statuses) == {200}


@needs_prometheus
def test_throughput_and_memory_are_those_of_all_workers_whoever_dies(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    prometheus = Prometheus(folder, f"127.0.0.1:{server.port}")
    try:
        ask(server, 10)
        prometheus.wait_for(f"{ANSWERED} == 10")
        psutil.Process(server.process.pid).children()[0].kill()
        prometheus.wait_for("signet_workers == 1 or changes(process_open_fds[1m]) > 0")
        eventually(lambda: server.metric("signet_workers") == WORKERS)
        ask(server, 10)
        prometheus.wait_for(f"{ANSWERED} == 20")
        prometheus.wait_for('sum(rate(signet_requests_total{route="/v1/classify"}[1m])) > 0')
        assert prometheus.query("resets(signet_images_total[5m]) > 0") == []
        assert prometheus.query("resets(process_cpu_seconds_total{job='signet'}[5m]) > 0") == []
        (memory,) = prometheus.query("process_resident_memory_bytes{job='signet'}")
        assert float(memory["value"][1]) == pytest.approx(server.tree_pss_bytes, rel=0.15)
        (flying,) = prometheus.query("signet_in_flight")
        assert float(flying["value"][1]) == 1
    finally:
        prometheus.close()
