"""Clients that choose among kinds of requests, one after the other, until their time is over; and memory meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.helpers.server import Server

Kind = Callable[[random.Random, httpx.Client], None]
"""Makes one request and checks its answer; what it raises is a failure."""


@dataclass(frozen=True)
class Sample:
    """The server after so many seconds: requests sent so far, and the bytes it holds."""

    seconds: float
    requests: int
    pss_bytes: int
    rss_bytes: int


@dataclass
class Crowd:
    """Clients of one server; a kind that stands twice is chosen twice as often."""

    server: Server
    kinds: Sequence[Kind]
    sent: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def expect(self, condition: bool, what: Any) -> None:
        if not condition:
            self.failures.append(str(what))

    def run(
        self,
        seconds: float,
        clients: int,
        every_s: float,
        *,
        at_rest: bool = False,
        tell: Callable[[Sample], None] | None = None,
    ) -> list[Sample]:
        """Send for so long; a sample now and every `every_s`, `at_rest` after all answers, before the next requests."""
        begun = time.monotonic()
        end = begun + seconds
        busy = [threading.Lock() for _ in range(clients)]
        threads = [threading.Thread(target=self._client, args=(seed, end, lock)) for seed, lock in enumerate(busy)]
        for thread in threads:
            thread.start()
        samples = []
        while True:
            now = time.monotonic()
            with ExitStack() as held:
                for lock in busy if at_rest else ():
                    held.enter_context(lock)
                pss, rss = self.server.tree_pss_bytes, self.server.tree_rss_bytes
                sample = Sample(time.monotonic() - begun, self.sent.total(), pss, rss)
            samples.append(sample)
            if tell is not None:
                tell(sample)
            if now >= end:
                break
            time.sleep(max(0.0, min(every_s, end - now)))
        for thread in threads:
            thread.join()
        return samples

    def _client(self, seed: int, end: float, busy: threading.Lock) -> None:
        choose = random.Random(seed)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=60) as http:
            while time.monotonic() < end:
                kind = choose.choice(self.kinds)
                with busy:
                    self.sent[kind.__name__] += 1
                    try:
                        kind(choose, http)
                    except Exception as error:
                        self.failures.append(f"{kind.__name__}: {error!r}")
                time.sleep(0.001)  # a lock is not fair: who waits for it gets a chance
