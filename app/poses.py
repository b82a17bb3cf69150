"""People in a picture: boxes become crops for the network, its heatmaps become keypoints in the picture's pixels.

Where a request gives no boxes, the whole picture is one person. Sizes, boxes and keypoints speak of the upright picture
(after its EXIF orientation); boxes are `x, y, width, height` by their edges, keypoints are pixel indices. Knows nothing
of HTTP; `signet predict` uses it as the service does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from app.errors import Problem, ServiceError
from app.images import Picture, decode
from app.repository import Session
from models.drawing import draw_people
from models.packing.file import InputSpec, Keypoints
from models.pose import Square, crop, merge_flipped
from models.pose import decode as read_heatmaps

LARGEST_PX = 1e6
"""Coordinates of boxes beyond this are refused: no picture is so large."""
SMALLEST_PX = 1.0
OVERLAY_PX = 1600
"""Longest side of a picture that is drawn into; larger ones are shrunk to it."""

Box = tuple[float, float, float, float]
_Coordinate = Annotated[float, Field(ge=-LARGEST_PX, le=LARGEST_PX, strict=True, allow_inf_nan=False)]
_Row = tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate]
_ONE_OR_MORE: TypeAdapter[list[_Row] | _Row] = TypeAdapter(list[_Row] | _Row)
_BY_PICTURE: TypeAdapter[list[list[_Row] | None]] = TypeAdapter(list[list[_Row] | None])
_EXPECTED = (
    "expected x,y,width,height in pixels of the upright picture, numbers within a million; for several people repeat "
    "the parameter or send JSON [[x,y,width,height],...]"
)
_EXPECTED_BY_PICTURE = (
    "expected JSON with one list of boxes [x,y,width,height] for each picture, or null: [[[...]],null]"
)


@dataclass(frozen=True)
class PreparedPeople:
    """The people of one picture as the network takes them.

    Attributes
    ----------
    pixels : uint8 [P, size, size, 3], one crop a person.
    boxes, squares : where each was asked for, and what was cut out, in pixels of the upright original.
    width, height : of the upright original.
    canvas : the picture to draw into, at most `OVERLAY_PX` long; None where nothing is drawn.
    begun : `time.monotonic` instant at which work on it began.
    decode_s, preprocess_s : the seconds spent.
    """

    pixels: NDArray[np.uint8]
    boxes: list[Box]
    squares: list[Square]
    width: int
    height: int
    canvas: Image.Image | None
    begun: float
    decode_s: float
    preprocess_s: float


@dataclass(frozen=True)
class Person:
    """One person: its box, points [K, 2] in pixels of the upright picture, and scores [K] within 0 and 1."""

    box: Box
    points: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def score(self) -> float:
        """The mean of the keypoints' scores."""
        return float(self.scores.mean())


@dataclass(frozen=True)
class Poses:
    """The answer for one picture: its upright size, its people, and the drawn picture as PNG where it was asked for."""

    width: int
    height: int
    people: list[Person]
    overlay: bytes | None = None


def session_keypoints(session: Session) -> Keypoints:
    """The keypoints of a pose model. Raises ServiceError WRONG_TASK for another task."""
    header = session.file.header
    if header.task != "pose" or header.keypoints is None:
        raise ServiceError(Problem.WRONG_TASK, f"The model does {header.task}, not pose.")
    return header.keypoints


def read_boxes(values: Sequence[str]) -> list[Box]:
    """Boxes from text, each value being one box `x,y,width,height` or JSON of one or several.

    Raises ValueError saying what was expected.
    """
    boxes: list[Box] = []
    for value in values:
        text = value.strip()
        try:
            read = _ONE_OR_MORE.validate_json(text if text.startswith("[") else f"[{text}]")
        except ValidationError:
            raise ValueError(_EXPECTED) from None
        boxes += read if isinstance(read, list) else [read]
    _check_sizes(boxes)
    return boxes


def read_boxes_by_picture(text: str) -> list[list[Box]]:
    """The boxes of each picture of a batch, from JSON. Raises ValueError saying what was expected."""
    try:
        read = _BY_PICTURE.validate_json(text)
    except ValidationError:
        raise ValueError(_EXPECTED_BY_PICTURE) from None
    by_picture: list[list[Box]] = [list(boxes or ()) for boxes in read]
    for boxes in by_picture:
        _check_sizes(boxes)
    return by_picture


def _check_sizes(boxes: Sequence[Box]) -> None:
    for index, (_, _, width, height) in enumerate(boxes):
        if min(width, height) < SMALLEST_PX:
            raise ValueError(f"box {index} is {width:g} x {height:g} px, expected at least {SMALLEST_PX:g} each way")


def _check_places(boxes: Sequence[Box], width: int, height: int) -> None:
    for index, (x, y, w, h) in enumerate(boxes):
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise ServiceError(
                Problem.INVALID_PARAMETER,
                f"boxes: box {index}, {x:g},{y:g},{w:g},{h:g}, lies outside of the picture of {width} x {height} px.",
            )


def _squares(boxes: Sequence[Box], width: int, height: int) -> list[Square]:
    """What the network sees of each person: a padded box; without boxes the whole picture, as letterboxing shows it."""
    if not boxes:
        return [Square.of_box((0, 0, width, height), padding=1.0)]
    return [Square.of_box(box) for box in boxes]


def canvas_needed_px(width: int, height: int) -> int:
    """The shorter side that serves a drawing; decoding keeps twice as much."""
    return max(1, round(min(width, height) * OVERLAY_PX / max(width, height) / 2))


def canvas_of(picture: Picture) -> Image.Image:
    """The picture to draw into, at most `OVERLAY_PX` long."""
    canvas = picture.image
    if max(canvas.size) > OVERLAY_PX:
        canvas = canvas.copy()
        canvas.thumbnail((OVERLAY_PX, OVERLAY_PX), Image.Resampling.BICUBIC)
    return canvas


def on_canvas(points: NDArray[np.floating], canvas: Image.Image, width: int, height: int) -> NDArray[np.floating]:
    """Points `[..., 2]` of a picture of `width` x `height` px as points of its canvas."""
    return (points + 0.5) * (np.array(canvas.size) / (width, height)) - 0.5


def prepare_people(
    data: bytes, boxes: Sequence[Box], spec: InputSpec, max_pixels: int, *, drawn: bool = False
) -> PreparedPeople:
    """Decode a picture and cut people out of it; keep the picture where it is to be `drawn` into.

    Raises ServiceError as `app.images.decode` does, and INVALID_PARAMETER for a box outside of the picture.
    """
    begun = time.monotonic()
    size = spec.height

    def needed_px(width: int, height: int) -> int:
        """The shorter side that serves every crop and the drawing; decoding keeps twice as much."""
        scale = size / min(square.side for square in _squares(boxes, width, height))
        return max(1, round(min(width, height) * scale), canvas_needed_px(width, height) if drawn else 0)

    picture = decode(data, max_pixels=max_pixels, needed_px=needed_px)
    decoded = time.monotonic()
    _check_places(boxes, picture.width, picture.height)
    squares = _squares(boxes, picture.width, picture.height)
    pixels = [crop(picture.image, square.shrunk(picture.reduced), size, spec.mean_colour) for square in squares]
    canvas = canvas_of(picture) if drawn else None
    return PreparedPeople(
        np.stack(pixels),
        list(boxes) or [(0.0, 0.0, float(picture.width), float(picture.height))],
        squares,
        picture.width,
        picture.height,
        canvas,
        begun,
        decoded - begun,
        time.monotonic() - decoded,
    )


def with_mirrored(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crops [P, size, size, 3] and behind them their mirror images: [2 P, size, size, 3]."""
    return np.concatenate([pixels, pixels[:, :, ::-1]])


def finish(prepared: PreparedPeople, heatmaps: NDArray[np.float32], keypoints: Keypoints, size: int) -> Poses:
    """Read the people of one picture off their heatmaps, and draw them where that was asked for.

    Parameters
    ----------
    heatmaps : [P, h, h, K], or [2 P, h, h, K] where the network was given `with_mirrored` crops.
    size : the side of the network's input in pixels.

    Raises ServiceError MODEL_UNAVAILABLE if the heatmaps are not finite.
    """
    if not np.isfinite(heatmaps).all():
        raise ServiceError(Problem.MODEL_UNAVAILABLE, "The model's answer is not finite.", retry_after_s=30)
    count = len(prepared.squares)
    if len(heatmaps) > count:
        heatmaps = merge_flipped(heatmaps[:count], heatmaps[count:], keypoints)
    points, scores = read_heatmaps(heatmaps, size / heatmaps.shape[1])
    people = [
        Person(box, square.to_picture(found, size), score)
        for box, square, found, score in zip(prepared.boxes, prepared.squares, points, scores, strict=True)
    ]
    overlay = None if prepared.canvas is None else _draw(prepared, people, keypoints)
    return Poses(prepared.width, prepared.height, people, overlay)


def _draw(prepared: PreparedPeople, people: Sequence[Person], keypoints: Keypoints) -> bytes:
    """The picture with its people, as PNG."""
    assert prepared.canvas is not None
    found = np.stack([person.points for person in people])
    points = on_canvas(found, prepared.canvas, prepared.width, prepared.height)
    drawn = draw_people(prepared.canvas, points, np.stack([person.scores for person in people]), keypoints)
    encoded = BytesIO()
    drawn.save(encoded, "PNG", compress_level=1)  # a photograph hardly shrinks further, and takes ten times as long
    return encoded.getvalue()


def find_people(
    session: Session, data: bytes, boxes: Sequence[Box] = (), *, max_pixels: int, flip: bool = True, drawn: bool = False
) -> Poses:
    """Find the keypoints of the people of one encoded picture. Raises ServiceError for whatever prevents it."""
    keypoints, spec = session_keypoints(session), session.file.header.input
    prepared = prepare_people(data, boxes, spec, max_pixels, drawn=drawn)
    pixels = with_mirrored(prepared.pixels) if flip else prepared.pixels
    return finish(prepared, session.run(pixels)["heatmaps"], keypoints, spec.height)
