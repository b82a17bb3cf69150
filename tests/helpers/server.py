"""The real service in a process of its own, and ways to talk to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Reply:
    """What came back over a raw socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`signet serve` on a free port; settings are given as for the environment, without `SIGNET_`."""

    def __init__(self, models: Path, **settings: object) -> None:
        self.port = free_port()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNET_")}
        if "SIGNET_ISA" in os.environ:
            environment["SIGNET_ISA"] = os.environ["SIGNET_ISA"]
        settings = {"queue_deadline_ms": 60_000, **settings}  # the machine that runs the tests may be busy
        environment |= {f"SIGNET_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "app.cli", "serve", "--port", str(self.port), "--models", str(models)]
        self.process = subprocess.Popen(command, env=environment, stderr=self.log, stdout=self.log)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < 60:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log_text()}")
            try:
                if self.client.get("/livez").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        raise RuntimeError(f"the server did not start:\n{self.log_text()}")

    def log_text(self) -> str:
        handle: IO[str] = self.log
        handle.seek(0)
        return handle.read()

    def log_events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_text().splitlines()]

    @property
    def rss_bytes(self) -> int:
        size: int = psutil.Process(self.process.pid).memory_info().rss
        return size

    @property
    def tree_pss_bytes(self) -> int:
        """Memory of the service and its workers, pages that they share counted once."""
        return self._tree_bytes("pss")

    @property
    def tree_rss_bytes(self) -> int:
        """The same, shared pages counted for each; it does not depend on what else runs on the machine."""
        return self._tree_bytes("rss")

    def _tree_bytes(self, kind: str) -> int:
        whole = psutil.Process(self.process.pid)
        total = 0
        for process in (whole, *whole.children(recursive=True)):
            try:
                total += getattr(process.memory_full_info(), kind)
            except psutil.NoSuchProcess:
                continue
        return total

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the process has used: what a start costs, however busy the machine is."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            match = re.fullmatch(r"([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= found.items():
                    total += float(match[3])
        return total

    def classify(self, data: bytes, **parameters: Any) -> httpx.Response:
        return self.client.post("/v1/classify", content=data, params=parameters, headers={"Content-Type": "image/jpeg"})

    def pose(self, data: bytes, **parameters: Any) -> httpx.Response:
        return self.client.post("/v1/pose", content=data, params=parameters, headers={"Content-Type": "image/jpeg"})

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            yield sock

    def exchange(self, data: bytes, *, half_close: bool = False) -> Reply:
        """Send bytes over a fresh connection and read one answer."""
        with self.connection() as sock:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            return read_reply(sock)

    def stop(self, signal_number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Send a signal and give the exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """End the process whatever its state."""
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.log.close()


def eventually(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for what happens just after an answer was sent, such as its line in the log.

    What is asked of a process that is being killed or drained may get no answer; it is then asked again.
    """
    end = time.monotonic() + within_s

    def holds() -> bool:
        try:
            return condition()
        except httpx.TransportError:
            return False

    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def read_reply(sock: socket.socket) -> Reply:
    """Read one HTTP answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data = _more(sock, data)
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body = _more(sock, body)
    return Reply(int(status_line.split()[1]), headers, body)


def _more(sock: socket.socket, data: bytes) -> bytes:
    piece = sock.recv(65536)
    if not piece:
        raise ConnectionError(f"the connection was closed after {data!r}")
    return data + piece
