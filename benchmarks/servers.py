"""Servers as benchmarks run them: started, waited for, weighed and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

PEERS = Path(__file__).with_name("peers")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A server in processes of its own; `start_s` is the time until it said that it was ready."""

    def __init__(self, command: Sequence[str], port: int, ready: str, environment: Mapping[str, str]) -> None:
        self.port = port
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not self._is_ready(ready):
            if self._process.poll() is not None or time.perf_counter() - begun > 180:
                raise RuntimeError(f"{command} did not start")
            time.sleep(0.01)
        self.start_s = time.perf_counter() - begun

    def _is_ready(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def _memory(self) -> list[tuple[int, int]]:
        whole = psutil.Process(self._process.pid)
        found = []
        for process in (whole, *whole.children(recursive=True)):
            try:
                info = process.memory_full_info()
            except psutil.NoSuchProcess:
                continue
            found.append((info.rss, info.pss))
        return found

    @property
    def rss_bytes(self) -> int:
        """Resident memory of all its processes; pages that they share count for each."""
        return sum(rss for rss, _ in self._memory())

    @property
    def pss_bytes(self) -> int:
        """Memory of all its processes, pages that they share counted once."""
        return sum(pss for _, pss in self._memory())

    def stop(self) -> None:
        """End it and all its processes."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)


def signet(zoo: Path, **settings: object) -> Running:
    """Our service over a repository; settings as for the environment, without `SIGNET_`."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--models", str(zoo)]
    environment = {f"SIGNET_{name.upper()}": str(value) for name, value in settings.items()}
    return Running(command, port, "/readyz", environment)


def peer(script: str, ready: str, *arguments: object) -> Running:
    """A server of `benchmarks/peers`, which takes its port first."""
    port = free_port()
    command = [sys.executable, str(PEERS / script), str(port), *map(str, arguments)]
    return Running(command, port, ready, {})
