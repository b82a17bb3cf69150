"""Pictures with a disc of its own colour at each joint, and where the discs are."""

from __future__ import annotations

import numpy as np
from PIL import Image

DOT_RADIUS = 3


def palette(count: int) -> np.ndarray:
    """Colours [count, 3] far from each other and from grey."""
    levels = [(r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)]
    far = [c for c in levels if max(c) - min(c) > 100]
    assert len(far) >= count
    return np.array(far[:count], np.uint8)


def dotted(width: int, height: int, joints: np.ndarray, radius: int = DOT_RADIUS) -> Image.Image:
    """A grey picture with a disc of its own colour at each joint (pixel indices)."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    y, x = np.indices((height, width))
    for (jx, jy), colour in zip(joints, palette(len(joints)), strict=True):
        pixels[(x - jx) ** 2 + (y - jy) ** 2 <= radius**2] = colour
    return Image.fromarray(pixels)


def find_dots(pixels: np.ndarray, count: int) -> np.ndarray:
    """Where the discs are, [count, 2] in pixel indices; NaN where there is none."""
    found = np.full((count, 2), np.nan)
    for k, colour in enumerate(palette(count)):
        distance = np.abs(pixels.astype(int) - colour.astype(int)).max(axis=2)
        y, x = np.nonzero(distance < 45)
        if len(x):
            found[k] = x.mean(), y.mean()
    return found


def spread(random: np.random.Generator, count: int, low: float, high: float, apart: float = 12) -> np.ndarray:
    """`count` whole points within `low` and `high`, each at least `apart` from all others."""
    points: list[np.ndarray] = []
    while len(points) < count:
        point = random.integers(int(low), int(high), 2).astype(float)
        if all(np.linalg.norm(point - other) >= apart for other in points):
            points.append(point)
    return np.array(points)
