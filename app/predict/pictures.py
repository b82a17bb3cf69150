"""Which pictures the paths on a command line mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are given, folders by the pictures anywhere below them, sorted.

    What cannot be looked at counts as a file, which then cannot be read.
    """
    for path in paths:
        if _is_folder(path):
            yield from sorted(found for found in path.rglob("*") if found.suffix.lower() in SUFFIXES)
        else:
            yield path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
