"""Several worker processes behind one socket.

The supervisor binds the socket, imports everything, and forks the workers, which so share the memory of the program's
code. Each worker is a whole service (`app.server`) that accepts from the common socket. One that dies is replaced at
once: connections that nobody has accepted wait for the others, so a worker takes down only what it was answering.
SIGTERM and SIGINT drain all workers; SIGKILL of the supervisor drains them too.

Counters and histograms lie in files that survive their worker (`app.metrics`): what a dead worker has counted stays
counted, and its successor, in the same slot, counts on. Its gauges are removed.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from app.rates import RateLimit
from app.settings import Settings

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_RETRY_S = 1.0
_MAX_FAILED_STARTS = 3
"""Workers in a row that may end before they served; then something is wrong that a restart cannot mend."""
_GRACE_S = 5.0

logger = logging.getLogger("signet.workers")


@dataclass(frozen=True)
class Shared:
    """What a worker gets from its supervisor.

    Attributes
    ----------
    folder : where workers meet and metrics lie.
    slot : the worker's number, 0 to N - 1, which its successor takes over.
    rates : the limit on clients, one over all workers; None where there is none.
    """

    folder: Path
    slot: int
    rates: RateLimit | None


class Supervisor:
    """Keeps `settings.workers` workers running until a signal ends them."""

    def __init__(self, settings: Settings, listener: socket.socket, folder: Path) -> None:
        self._settings = settings
        self._listener = listener
        self._folder = folder
        self._rates = RateLimit.of(settings)
        self._slots: dict[int, int] = {}
        self._signals = 0
        self._told: dict[int, int] = {}
        self._stopping_since = 0.0
        self._failed_starts = 0

    def run(self) -> int:
        """The exit status: 0 after a signal, 1 if workers cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        gc.collect()
        gc.freeze()  # what is there now is shared; the collector of a worker does not touch it
        for slot in range(self._settings.workers):
            self._start(slot)
        while self._slots:
            self._reap()
            if self._signals:
                self._end_workers()
            time.sleep(_POLL_S)
        return 0 if self._failed_starts < _MAX_FAILED_STARTS else 1

    def _start(self, slot: int) -> None:
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            _end_with(supervisor)
            _work(self._settings, self._listener, Shared(self._folder, slot, self._rates))
        self._slots[pid] = slot
        logger.info("worker started", extra={"worker": slot, "worker_pid": pid})

    def _reap(self) -> None:
        """Replace workers that have ended."""
        while self._slots:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            slot = self._slots.pop(pid)
            served = (self._folder / f"{slot}.sock").exists()
            (self._folder / f"{slot}.sock").unlink(missing_ok=True)
            for file in self._folder.glob(f"gauge_live*_{slot}.db"):
                file.unlink()
            if self._signals:
                continue
            code = os.waitstatus_to_exitcode(status)
            logger.error("worker ended", extra={"worker": slot, "worker_pid": pid, "exit_code": code})
            self._failed_starts = 0 if served else self._failed_starts + 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._signals = 1
                return
            if not served:
                time.sleep(_RETRY_S)
            self._start(slot)

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._signals += 1

    def _end_workers(self) -> None:
        """Have the workers drain; a second signal, or a drain that takes too long, ends them at once."""
        now = time.monotonic()
        self._stopping_since = self._stopping_since or now
        late = now - self._stopping_since > self._settings.drain_timeout_s + _GRACE_S
        wanted = signal.SIGKILL if late or self._signals > 1 else signal.SIGTERM
        for pid in self._slots:
            if self._told.get(pid) != wanted:
                self._told[pid] = wanted
                os.kill(pid, wanted)


def _work(settings: Settings, listener: socket.socket, shared: Shared) -> NoReturn:
    """Be a worker; never returns into the supervisor's code."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)  # Ctrl-C at a terminal reaches the supervisor alone, which passes it on once
        from app.server import serve_worker

        status = serve_worker(settings, listener, shared)
    except BaseException:
        logger.exception("worker failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with(supervisor: int) -> None:
    """Have the kernel send SIGTERM when the supervisor is gone. Linux only; elsewhere nothing happens."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (AttributeError, OSError):
        return
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGTERM)


def supervise(settings: Settings, listener: socket.socket) -> int:
    """Serve with several workers until a signal ends them; returns the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="signet-"))
    try:
        return Supervisor(settings, listener, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
