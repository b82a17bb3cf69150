"""How often one client may ask.

Each client has a bucket that fills at a steady rate and holds a burst, kept as one number: the instant until which what
it was granted is paid for (the generic cell rate algorithm). The numbers stand in a table of fixed size that forked
workers share, so clients cannot make it grow and the limit is one over all workers. A client's place in it is a keyed
hash of its name: nobody can choose to share another's place, and among a hundred clients two do so by chance once in
two hundred times.
"""

from __future__ import annotations

import mmap
import secrets
import time
from collections.abc import Callable
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address

from app.settings import Settings

_PLACES = 1 << 20


class RateLimit:
    """`per_s` requests a second on average for each client, and `burst` at once after a quiet time."""

    def __init__(self, per_s: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / per_s
        self._burst_s = burst / per_s
        self._now = now
        self._key = secrets.token_bytes(16)
        # Anonymous and shared; pages that no client's place lies in take no memory.
        self._paid_until = memoryview(mmap.mmap(-1, 8 * _PLACES)).cast("d")

    @classmethod
    def of(cls, settings: Settings) -> RateLimit | None:
        """The limit that the settings ask for; None where they ask for none."""
        per_s = settings.rate_limit_per_s
        return None if per_s is None else cls(per_s, settings.rate_limit_burst)

    def wait_s(self, client: bytes) -> float:
        """0 where the client's request is granted, which is counted; else the seconds until one would be."""
        place = int.from_bytes(blake2b(client, digest_size=8, key=self._key).digest(), "little") % _PLACES
        now = self._now()
        paid_until = max(self._paid_until[place], now) + self._interval_s
        wait_s = paid_until - now - self._burst_s
        if wait_s > 1e-9:
            return wait_s
        self._paid_until[place] = paid_until
        return 0.0


def address_name(host: str | None) -> bytes:
    """A client's name by its address; addresses of one IPv6 network of 64 bits are one client."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return (host or "").encode()
    return address.packed[:8] if isinstance(address, IPv6Address) and not address.ipv4_mapped else address.packed
