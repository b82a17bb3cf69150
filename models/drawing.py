"""Draws people's keypoints and limbs into a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.packing.file import Keypoints

COLOURS = {"left": (255, 122, 26), "right": (38, 148, 255), "middle": (122, 214, 74)}
"""Of the person's left and right side, and of what lies between them."""
OUTLINE = (16, 16, 16)
SUPERSAMPLING = 3
WIDTH_SHARE = 1 / 60
"""Width of a limb in terms of the person's extent."""
BAND_PX = 128
FAINTEST = 0.2
OPAQUE_FROM = 0.4
"""Scores are heights of heatmaps' peaks; those of joints that are found for sure begin about here."""


def draw_people(
    picture: Image.Image,
    points: NDArray[np.floating],
    scores: NDArray[np.floating],
    keypoints: Keypoints,
    *,
    threshold: float = 0.05,
) -> Image.Image:
    """A copy of `picture` (RGB) with people drawn into it.

    Parameters
    ----------
    points : [N, K, 2], (x, y) in the picture's pixels.
    scores : [N, K] within 0 and 1: the lower the fainter. Below `threshold` a keypoint is left out; a limb is as
        opaque as the fainter of its ends.
    """
    result = picture.convert("RGB")
    for person, score in zip(np.asarray(points, float), np.asarray(scores, float), strict=True):
        _draw_person(result, person, score, keypoints, threshold)
    return result


def _draw_person(
    picture: Image.Image, points: NDArray[np.floating], scores: NDArray[np.floating], keypoints: Keypoints, low: float
) -> None:
    shown = (scores >= low) & np.isfinite(points).all(axis=1)
    if not shown.any():
        return
    extent = float(np.ptp(points[shown], axis=0).max()) if shown.sum() > 1 else min(picture.size) / 4
    width = min(max(extent * WIDTH_SHARE, 1.0), max(picture.size) / 20)
    # Drawn larger on a layer of the person's own, which is then shrunk: Pillow's lines have no smooth edges. A band of
    # rows at a time, so that a large picture takes no large layer.
    margin = 4 * width + 2
    low_corner = np.maximum(np.floor(points[shown].min(axis=0) - margin), 0).astype(int)
    high_corner = np.minimum(np.ceil(points[shown].max(axis=0) + margin), picture.size).astype(int)
    if (high_corner <= low_corner).any():
        return
    left, right = int(low_corner[0]), int(high_corner[0])
    for top in range(int(low_corner[1]), int(high_corner[1]), BAND_PX):
        bottom = min(top + BAND_PX, int(high_corner[1]))
        layer = Image.new("RGBA", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING), (*OUTLINE, 0))
        spots = (points + 0.5 - (left, top)) * SUPERSAMPLING
        _draw_shapes(ImageDraw.Draw(layer), spots, scores, shown, keypoints, width)
        layer = layer.resize((right - left, bottom - top), Image.Resampling.BOX)
        picture.paste(layer, (left, top), layer)


def _draw_shapes(
    draw: ImageDraw.ImageDraw,
    spots: NDArray[np.floating],
    scores: NDArray[np.floating],
    shown: NDArray[np.bool_],
    keypoints: Keypoints,
    width: float,
) -> None:
    """Limbs and joints at `spots` [K, 2] of the enlarged layer: first everything's dark outline, then the colours."""
    colours = [COLOURS[side_of(name)] for name in keypoints.names]
    for outline in (True, False):
        grown = (width + (width * 0.5 + 1 if outline else 0)) * SUPERSAMPLING
        for a, b in keypoints.skeleton:
            if shown[a] and shown[b]:
                colour = OUTLINE if outline else _limb_colour(keypoints.names, (a, b))
                ends = [tuple(spots[a].tolist()), tuple(spots[b].tolist())]
                draw.line(ends, (*colour, _alpha(min(scores[a], scores[b]))), max(1, round(grown)))
        for k in np.flatnonzero(shown):
            radius = grown * 0.95
            x, y = spots[k].tolist()
            colour = OUTLINE if outline else colours[k]
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), (*colour, _alpha(scores[k])))


def side_of(name: str) -> str:
    """`left`, `right` or `middle`, by a keypoint's name."""
    side = name.partition("_")[0]
    return side if side in ("left", "right") else "middle"


def _limb_colour(names: Sequence[str], limb: tuple[int, int]) -> tuple[int, int, int]:
    """The colour of its ends' side; a limb that touches the middle takes the other end's."""
    sides = {side_of(names[end]) for end in limb} - {"middle"}
    return COLOURS[sides.pop() if len(sides) == 1 else "middle"]


def _alpha(score: float) -> int:
    """How opaque: `FAINTEST` at a score of 0, rising to 255 at `OPAQUE_FROM`."""
    return round(255 * (FAINTEST + (1 - FAINTEST) * min(max(float(score) / OPAQUE_FROM, 0.0), 1.0)))
