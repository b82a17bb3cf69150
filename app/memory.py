"""Memory that goes back to the system once a large picture has been answered."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_THRESHOLD_BYTES = 1 << 20


def return_large_blocks() -> bool:
    """Make glibc map every block of 1 MiB or more by itself, so that freeing it gives it back. True where that worked.

    Left alone, glibc raises this threshold to the largest block it has seen, and Pillow's blocks of 16 MiB then stay in
    the heap: one picture of 49 megapixels left 190 MB resident for good. Other C libraries need nothing of the kind.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES))
    except (AttributeError, OSError, TypeError):
        return False
