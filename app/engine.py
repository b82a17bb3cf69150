"""How the service opens packed files and counts CPUs: the one place that knows the engine.

The engine's extension is imported when a function runs, so that help texts and settings work without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.repository import Session


def loader(threads: int | None) -> Callable[[Path], Session]:
    """A function that loads a packed file into a session that computes with `threads` threads (None: all CPUs)."""

    def load(path: Path) -> Session:
        from models.xnor import Session as EngineSession

        return EngineSession.load(path, threads=threads)

    return load


def available_cpus() -> int:
    """CPUs that affinity and cgroup quota grant to this process."""
    from models.xnor.cpu import default_threads

    return default_threads()
