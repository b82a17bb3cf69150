"""What training and serving of pose share: skeletons, where a person is cut out, and how heatmaps are read.

Coordinates are pixel indices: (0, 0) is the centre of the first pixel, so a picture's left edge is at -0.5. Boxes and
squares are given by their edges instead, as `x, y, width, height` with (0, 0) the picture's corner. Points outside the
picture are allowed. `STRIDE` pixels of the network's input are one heatmap cell; cell c spans pixels 4c to 4c + 3, so
its centre is at 4c + 1.5. Numpy and Pillow alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.packing.file import Keypoints

STRIDE = 4
BOX_PADDING = 1.25
"""Side of the square that a network sees, in terms of the longer side of the person's box."""

Floats = NDArray[np.floating]


def _skeleton(names: Sequence[str], limbs: Sequence[tuple[str, str]]) -> Keypoints:
    """A skeleton from names; `left_x` and `right_x` are each other's mirror image."""
    index = {name: i for i, name in enumerate(names)}
    pairs = [(i, index["right_" + name[5:]]) for name, i in index.items() if name.startswith("left_")]
    return Keypoints(names=list(names), skeleton=[(index[a], index[b]) for a, b in limbs], flip_pairs=pairs)


def _both(*limbs: tuple[str, str]) -> list[tuple[str, str]]:
    return [(f"{side}_{a}", f"{side}_{b}") for side in ("right", "left") for a, b in limbs]


_ARM_AND_LEG = _both(("ankle", "knee"), ("knee", "hip"), ("wrist", "elbow"), ("elbow", "shoulder"))

LSP = _skeleton(
    (
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
        *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
        *("neck", "head_top"),
    ),
    [
        *_ARM_AND_LEG,
        ("right_hip", "left_hip"),
        ("right_hip", "right_shoulder"),
        ("left_hip", "left_shoulder"),
        ("right_shoulder", "neck"),
        ("left_shoulder", "neck"),
        ("neck", "head_top"),
    ],
)
"""Leeds Sports Pose: 14 joints, left and right the person's own."""

MPII = _skeleton(
    (
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
        *("pelvis", "thorax", "upper_neck", "head_top"),
        *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
    ),
    [
        *_ARM_AND_LEG,
        ("right_hip", "pelvis"),
        ("left_hip", "pelvis"),
        ("pelvis", "thorax"),
        ("right_shoulder", "thorax"),
        ("left_shoulder", "thorax"),
        ("thorax", "upper_neck"),
        ("upper_neck", "head_top"),
    ],
)
"""MPII Human Pose: 16 joints."""

COCO = _skeleton(
    (
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    [
        *_ARM_AND_LEG,
        ("left_hip", "right_hip"),
        ("left_shoulder", "left_hip"),
        ("right_shoulder", "right_hip"),
        ("left_shoulder", "right_shoulder"),
        ("left_eye", "right_eye"),
        *_both(("eye", "ear"), ("ear", "shoulder")),
        ("nose", "left_eye"),
        ("nose", "right_eye"),
    ],
)
"""COCO: 17 keypoints."""
COCO_PERSON = 1
"""COCO's category of people."""


def flip_order(keypoints: Keypoints) -> NDArray[np.int64]:
    """int64 [K]: entry k is the keypoint that k becomes in a mirrored picture."""
    order = np.arange(len(keypoints.names))
    for left, right in keypoints.flip_pairs:
        order[left], order[right] = right, left
    return order


@dataclass(frozen=True)
class Square:
    """A square of a picture, by its left and top edge and its side, in the picture's pixels. It may stick out."""

    left: float
    top: float
    side: float

    @classmethod
    def around(cls, centre: tuple[float, float], side: float) -> Square:
        """The square of `side` pixels whose middle is at `centre` (edge coordinates)."""
        return cls(centre[0] - side / 2, centre[1] - side / 2, side)

    @classmethod
    def of_box(cls, box: Sequence[float], padding: float = BOX_PADDING) -> Square:
        """Around the box `x, y, width, height`, `padding` times its longer side."""
        x, y, width, height = box
        return cls.around((x + width / 2, y + height / 2), max(width, height) * padding)

    def shrunk(self, factor: float) -> Square:
        """The same square of a picture that is `factor` times smaller each way."""
        return Square(self.left / factor, self.top / factor, self.side / factor)

    def to_crop(self, points: Floats, size: int) -> NDArray[np.float64]:
        """Points [..., 2] of the picture in pixels of the crop of `size` x `size` pixels."""
        corner = np.array([self.left, self.top])
        return np.asarray((points + 0.5 - corner) * (size / self.side) - 0.5, np.float64)

    def to_picture(self, points: Floats, size: int) -> NDArray[np.float64]:
        """Points [..., 2] of the crop of `size` x `size` pixels in pixels of the picture."""
        corner = np.array([self.left, self.top])
        return np.asarray((points + 0.5) * (self.side / size) + corner - 0.5, np.float64)

    def matrix(self, size: int) -> NDArray[np.float64]:
        """[2, 3]: M with M @ (x, y, 1) = the picture's pixel for pixel (x, y) of the crop."""
        origin = self.to_picture(np.zeros(2), size)
        scale = self.side / size
        return np.array([[scale, 0, origin[0]], [0, scale, origin[1]]])


def crop(picture: Image.Image, square: Square, size: int, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Cut out a square, resized to `size` x `size` pixels (bilinear, averaging where it shrinks).

    Returns uint8 [size, size, 3]; what lies outside of the picture has the colour `fill`. The cost depends on the
    picture and `size`, not on how far the square sticks out.
    """
    scale = square.side / size
    if not scale > 0:
        raise ValueError(f"a square of side {square.side} cannot be cut out")
    spans = []
    for start, length in ((square.left, picture.width), (square.top, picture.height)):
        # The crop's pixels that lie wholly inside of the picture.
        first, last = max(0, ceil(-start / scale)), min(size, floor((length - start) / scale))
        spans.append((first, last, max(0.0, start + first * scale), min(float(length), start + last * scale)))
    (x0, x1, left, right), (y0, y1, top, bottom) = spans
    result = np.empty((size, size, 3), np.uint8)
    result[:] = fill
    if x0 < x1 and y0 < y1:
        part = picture.resize(
            (x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=(left, top, right, bottom), reducing_gap=3.0
        )
        result[y0:y1, x0:x1] = np.asarray(part if part.mode == "RGB" else part.convert("RGB"))
    return result


def decode(heatmaps: NDArray[np.float32], stride: float = STRIDE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read keypoints off heatmaps: the highest cell, moved a quarter towards its higher neighbour each way.

    Parameters
    ----------
    heatmaps : float [N, h, w, K].
    stride : pixels of the network's input that one cell spans.

    Returns
    -------
    Points float64 [N, K, 2], (x, y) in pixels of the network's input, and scores [N, K], the heights of the peaks
    within 0 and 1.
    """
    count, height, width, joints = heatmaps.shape
    flat = heatmaps.reshape(count, height * width, joints)
    best = flat.argmax(axis=1)
    y, x = np.divmod(best, width)
    n, k = np.arange(count)[:, None], np.arange(joints)
    score = heatmaps[n, y, x, k]
    right, left = heatmaps[n, y, np.minimum(x + 1, width - 1), k], heatmaps[n, y, np.maximum(x - 1, 0), k]
    below, above = heatmaps[n, np.minimum(y + 1, height - 1), x, k], heatmaps[n, np.maximum(y - 1, 0), x, k]
    # At a border there is no neighbour on one side, so nothing to compare.
    shift_x = np.where((x > 0) & (x < width - 1), np.sign(right - left), 0) / 4
    shift_y = np.where((y > 0) & (y < height - 1), np.sign(below - above), 0) / 4
    cells = np.stack([x + shift_x, y + shift_y], axis=-1)
    points: NDArray[np.float64] = (cells + 0.5) * stride - 0.5
    return points, np.clip(score.astype(np.float64), 0, 1)


def merge_flipped(
    heatmaps: NDArray[np.float32], mirrored: NDArray[np.float32], keypoints: Keypoints
) -> NDArray[np.float32]:
    """Mean of the heatmaps [N, h, w, K] of pictures and of their mirror images, turned back."""
    back = mirrored[:, :, ::-1][..., flip_order(keypoints)]
    return np.asarray((heatmaps + back) / 2, np.float32)


def coco_result(image_id: int, points: Floats, scores: Floats) -> dict[str, Any]:
    """One person in COCO's result format; its score is the mean of its keypoints' scores.

    Parameters
    ----------
    points : [K, 2], (x, y) in the picture's pixels.
    scores : [K].
    """
    flat = np.concatenate([points, np.ones((len(points), 1))], axis=1).round(3)
    return {
        "image_id": image_id,
        "category_id": COCO_PERSON,
        "keypoints": flat.ravel().tolist(),
        "score": float(np.mean(scores)),
    }
