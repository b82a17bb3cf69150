"""Servers as benchmarks run them: started, waited for, weighed and stopped. Every wait has an end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

PEERS = Path(__file__).with_name("peers")
START_S, STOP_S = 120, 40
LOG_LINES = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A server in processes of its own; `start_s` is the time until it said that it was ready.

    Raises RuntimeError with the end of its log where it ends, or is not ready in two minutes.
    """

    def __init__(self, command: Sequence[str], port: int, ready: str, environment: Mapping[str, str]) -> None:
        self.port = port
        self._command = command
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by stop()
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        while not self._is_ready(ready):
            if self._process.poll() is not None or time.perf_counter() - begun > START_S:
                failure = self.failure("did not start")
                self.stop()
                raise failure
            time.sleep(0.01)
        self.start_s = time.perf_counter() - begun

    def _is_ready(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def failure(self, what: str) -> RuntimeError:
        """An error that shows the end of the server's log."""
        self._log.seek(0)
        lines = self._log.read().splitlines()[-LOG_LINES:]
        return RuntimeError("\n".join([f"{' '.join(self._command)} {what}; the end of its log:", *lines]))

    def processes(self) -> Iterator[psutil.Process]:
        """The processes that it consists of."""
        try:
            whole = psutil.Process(self._process.pid)
            yield from (whole, *whole.children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def _memory(self) -> list[tuple[int, int]]:
        found = []
        for process in self.processes():
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

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far of all its processes, user and system."""
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def stop(self) -> None:
        """End it and all its processes."""
        everything = list(self.processes())
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(everything, STOP_S)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, STOP_S)
        self._process.wait(STOP_S)
        self._log.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        try:
            if isinstance(error, Exception):
                raise self.failure(f"failed ({error})") from error
        finally:
            self.stop()


def signet(*zoos: Path, options: Sequence[str] = (), cpus: str | None = None, **settings: object) -> Running:
    """Our service over repositories, with more options, held to CPUs; settings without their `SIGNET_`."""
    port = free_port()
    models = [part for zoo in zoos for part in ("--models", str(zoo))]
    held = ["taskset", "--cpu-list", cpus] if cpus else []
    command = [*held, sys.executable, "-m", "app.cli", "serve", "--port", str(port), *models, *options]
    environment = {f"SIGNET_{name.upper()}": str(value) for name, value in settings.items()}
    return Running(command, port, "/readyz", environment)


def peer(script: str, *arguments: object) -> Running:
    """A server of `benchmarks/peers`, which takes its port first and answers /health."""
    port = free_port()
    command = [sys.executable, str(PEERS / script), str(port), *map(str, arguments)]
    return Running(command, port, "/health", {})
