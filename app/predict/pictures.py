"""Which pictures the paths on a command line mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are given, folders by the pictures anywhere below them, sorted."""
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*") if found.suffix.lower() in SUFFIXES)
        else:
            yield path
