"""Clients that choose among kinds of requests, one after the other, until their time is over; and memory meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
        pause_s: float = 0.0,
        tell: Callable[[Sample], None] | None = None,
    ) -> list[Sample]:
        """Send for so long, each client with a pause after each answer; a sample now and every `every_s`."""
        begun = time.monotonic()
        end = begun + seconds
        threads = [threading.Thread(target=self._client, args=(seed, end, pause_s)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        samples = []
        while True:
            now = time.monotonic()
            sample = Sample(now - begun, self.sent.total(), self.server.tree_pss_bytes, self.server.rss_bytes)
            samples.append(sample)
            if tell is not None:
                tell(sample)
            if now >= end:
                break
            time.sleep(max(0.0, min(every_s, end - now)))
        for thread in threads:
            thread.join()
        return samples

    def _client(self, seed: int, end: float, pause_s: float) -> None:
        choose = random.Random(seed)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=60) as http:
            while time.monotonic() < end:
                kind = choose.choice(self.kinds)
                self.sent[kind.__name__] += 1
                try:
                    kind(choose, http)
                except Exception as error:
                    self.failures.append(f"{kind.__name__}: {error!r}")
                time.sleep(pause_s)
