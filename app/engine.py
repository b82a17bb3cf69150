"""How the service opens a packed file: the one place that knows the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.repository import Session


def loader(threads: int) -> Callable[[Path], Session]:
    """A function that loads a packed file into an engine session of `threads` threads."""

    def load(path: Path) -> Session:
        from models.xnor import Session as EngineSession

        return EngineSession.load(path, threads=threads)

    return load
