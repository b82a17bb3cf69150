"""The types that every pose data set is read into."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.packing.file import InputSpec, Keypoints, Resize
from models.pose import Square, crop
from training.errors import TrainingError

# Statistics of ImageNet's training images, which suit photographs in general.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
FILL = (124, 116, 104)
"""The mean colour, for what lies outside of a picture."""
UPRIGHT_DEGREES = 35.0


@dataclass(frozen=True)
class Sample:
    """One person, cut out.

    Attributes
    ----------
    crop : uint8 [size, size, 3].
    joints : float64 [K, 2] in pixels of the crop; `visible` bool [K] says which of them mean something.
    keypoints : names, limbs and mirrored pairs.
    to_picture : float64 [2, 3], M with M @ (x, y, 1) = the original picture's pixel of the crop's (x, y).
    """

    crop: NDArray[np.uint8]
    joints: NDArray[np.float64]
    visible: NDArray[np.bool_]
    keypoints: Keypoints
    to_picture: NDArray[np.float64]


class Encoded(NamedTuple):
    """A picture that lies in a file with others: its bytes, and the name that errors give it."""

    content: bytes
    name: str


@dataclass(frozen=True)
class People:
    """One split of a data set: N people with K joints.

    Attributes
    ----------
    keypoints : the K joints.
    pictures : the pictures they are in: files of their own, or in one.
    picture : int64 [N], the index of each one's picture.
    squares : float64 [N, 3], left, top and side of what the network sees of each, in the picture's pixels.
    joints : float64 [N, K, 2] in the picture's pixels; `visible` bool [N, K] says which of them mean something.
    head_px : float64 [N], each head's size for PCKh; NaN where it is unknown.
    upright : bool [N].
    image_ids : int64 [N], the data set's own numbers of the pictures.
    """

    keypoints: Keypoints
    pictures: Sequence[Path | Encoded]
    picture: NDArray[np.int64]
    squares: NDArray[np.float64]
    joints: NDArray[np.float64]
    visible: NDArray[np.bool_]
    head_px: NDArray[np.float64]
    upright: NDArray[np.bool_]
    image_ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        count, joints = len(self.picture), len(self.keypoints.names)
        expected = {
            "squares": (count, 3),
            "joints": (count, joints, 2),
            "visible": (count, joints),
            "head_px": (count,),
            "upright": (count,),
            "image_ids": (count,),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} of {count} people is {found}, expected {shape}")

    def __len__(self) -> int:
        return len(self.picture)

    def first(self, count: int | None) -> People:
        """The first `count` people; all if None."""
        return self if count is None else self.take(np.arange(min(count, len(self))))

    def take(self, index: NDArray[np.int64]) -> People:
        """The people of `index`."""
        arrays = ("picture", "squares", "joints", "visible", "head_px", "upright", "image_ids")
        return replace(self, **{name: getattr(self, name)[index] for name in arrays})

    def square(self, index: int) -> Square:
        """What the network sees of one person."""
        left, top, side = self.squares[index].tolist()
        return Square(left, top, side)

    def cut_out(self, index: int, size: int, margin: float = 1.0) -> NDArray[np.uint8]:
        """The square of one person, `margin` times as large, as uint8 [size, size, 3].

        Raises TrainingError naming the picture that cannot be decoded.
        """
        square = self.square(index)
        middle = (square.left + square.side / 2, square.top + square.side / 2)
        return _cut_out(self.pictures[self.picture[index]], Square.around(middle, square.side * margin), size)

    def sample(self, index: int, size: int) -> Sample:
        """One person, cut out at `size` x `size` pixels."""
        square = self.square(index)
        joints = square.to_crop(self.joints[index], size)
        return Sample(
            self.cut_out(index, size), joints, self.visible[index].copy(), self.keypoints, square.matrix(size)
        )

    def crop_joints(self, size: int) -> NDArray[np.float32]:
        """Everybody's joints in pixels of their crops, float32 [N, K, 2]; 0 where not visible."""
        corner, side = self.squares[:, None, :2], self.squares[:, None, 2:]
        joints = (self.joints + 0.5 - corner) * (size / side) - 0.5
        return np.where(self.visible[..., None], joints, 0).astype(np.float32)

    def picture_points(self, points: NDArray[np.floating], index: NDArray[np.int64], size: int) -> NDArray[np.float64]:
        """Points [B, K, 2] of the crops of the people `index` in pixels of their pictures."""
        corner, side = self.squares[index][:, None, :2], self.squares[index][:, None, 2:]
        return np.asarray((points + 0.5) * (side / size) + corner - 0.5, np.float64)


@dataclass(frozen=True)
class PoseDataset:
    """A pose data set.

    Attributes
    ----------
    name : for the log and the checkpoint.
    train, validation : the two splits; the second one measures and is never trained on.
    input : size in pixels, mean and std of the network's input.
    annotations : the file that OKS-AP is measured against, if the data set has one.
    unmeasured : joints that the mean of PCKh leaves out.
    """

    name: str
    train: People
    validation: People
    input: InputSpec
    annotations: Path | None = None
    unmeasured: tuple[str, ...] = ()

    @property
    def keypoints(self) -> Keypoints:
        """The joints of both splits."""
        return self.train.keypoints


def input_spec(size: int) -> InputSpec:
    """The input of a pose network of `size` pixels; a whole picture is fitted into it."""
    return InputSpec(height=size, width=size, mean=MEAN, std=STD, resize=Resize(mode="letterbox"))


def lengths(
    joints: NDArray[np.float64], visible: NDArray[np.bool_], keypoints: Keypoints, ends: tuple[str, str]
) -> NDArray[np.float64]:
    """Distance [N] of two joints in pixels; NaN where one of them is not visible or the skeleton has none such."""
    if not set(ends) <= set(keypoints.names):
        return np.full(len(joints), np.nan)
    a, b = (keypoints.names.index(end) for end in ends)
    distance = np.linalg.norm(joints[:, a] - joints[:, b], axis=-1)
    return np.where(visible[:, a] & visible[:, b], distance, np.nan)


def stands_upright(joints: NDArray[np.float64], visible: NDArray[np.bool_], keypoints: Keypoints) -> NDArray[np.bool_]:
    """bool [N]: the neck (without one: the middle of the shoulders) is above the hips, within 35 degrees."""
    names = keypoints.names
    tops = [name for name in names if name in ("neck", "thorax")] or ["left_shoulder", "right_shoulder"]
    top, hips = ([names.index(name) for name in ends] for ends in (tops, ["left_hip", "right_hip"]))
    x, y = np.moveaxis(joints[:, top].mean(axis=1) - joints[:, hips].mean(axis=1), -1, 0)
    seen = visible[:, [*top, *hips]].all(axis=1)
    return np.asarray(seen & (np.degrees(np.arctan2(np.abs(x), -y)) <= UPRIGHT_DEGREES))


def boxes_of_joints(joints: NDArray[np.float64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The smallest boxes [N, 4] (x, y, width, height) around the visible joints."""
    low = np.where(visible[..., None], joints, np.inf).min(axis=1)
    high = np.where(visible[..., None], joints, -np.inf).max(axis=1)
    return np.concatenate([low + 0.5, high - low], axis=1)


def squares_of_boxes(boxes: NDArray[np.float64], padding: float) -> NDArray[np.float64]:
    """Squares [N, 3] (left, top, side) around boxes [N, 4]; of at least 1 pixel."""
    side = np.maximum(boxes[:, 2:].max(axis=1) * padding, 1.0)
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    return np.concatenate([middle - side[:, None] / 2, side[:, None]], axis=1)


def _cut_out(source: Path | Encoded, square: Square, size: int) -> NDArray[np.uint8]:
    name = source if isinstance(source, Path) else source.name
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source.content)) as image:
            # Annotations are in stored pixels, so an EXIF orientation is left alone. A JPEG that will shrink much is
            # decoded at half its size or less.
            width = image.width
            shrink = square.side / size
            if shrink >= 2:
                image.draft("RGB", (int(image.width / shrink), int(image.height / shrink)))
            reduced = 1 if image.width == width else round(width / image.width)
            return crop(image.convert("RGB"), square.shrunk(reduced), size, FILL)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TrainingError(f"{name}: cannot be decoded as a picture: {error}") from error
