"""The state that the whole process shares: whether it drains, and what is in progress."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Lifecycle:
    """Touched only on the event loop's thread (and by its signal handler).

    Attributes
    ----------
    draining : set by SIGTERM; new requests are refused from then on.
    in_flight : accepted requests in progress.
    buffered_bytes : bytes of request bodies held by them.
    """

    draining: bool = False
    in_flight: int = 0
    buffered_bytes: int = 0
