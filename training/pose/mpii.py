"""MPII Human Pose (Andriluka et al. 2014), 16 joints a person, from the usual JSON lists of people.

A person has `image`, `center` and `scale` (a person is about 200 * scale pixels tall), `joints` [16, 2] and
`joints_vis` [16]. As in the hourglass paper's code the centre is moved down by 15 * scale and the square's side is
200 * 1.25 * scale. Coordinates in the files count from 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pose import MPII
from training.errors import TrainingError
from training.pose.config import MpiiData
from training.pose.listing import load_json, numbers, picture_path
from training.pose.people import People, PoseDataset, input_spec, lengths, stands_upright

JOINTS = len(MPII.names)
HEAD = ("upper_neck", "head_top")
UNMEASURED = ("pelvis", "thorax")
PERSON_PX = 200.0
CENTRE_DOWN_PX = 15.0
HEAD_BOX_SHARE = 0.6
"""PCKh takes this share of the head box's diagonal as the head's size."""


def read(root: Path, config: MpiiData) -> PoseDataset:
    """Read MPII from `root`. Raises TrainingError naming the file and field that is missing or wrong."""
    train = _read(root / config.train_annotations, root / config.train_images, config)
    validation = _read(root / config.validation_annotations, root / config.validation_images, config)
    boxes = root / config.head_boxes
    if boxes.is_file():
        validation = _with_head_boxes(validation, boxes)
    return PoseDataset(
        "mpii",
        train.first(config.train_people),
        validation.first(config.validation_people),
        input_spec(config.image_size),
        unmeasured=UNMEASURED,
    )


def _read(path: Path, folder: Path, config: MpiiData) -> People:
    rows = load_json(path)
    if not isinstance(rows, list) or not rows:
        raise TrainingError(f"{path}: expected a list of people")
    joints = np.empty((len(rows), JOINTS, 2))
    visible = np.empty((len(rows), JOINTS), bool)
    squares = np.empty((len(rows), 3))
    pictures: dict[Path, int] = {}
    picture = np.empty(len(rows), np.int64)
    for index, row in enumerate(rows):
        where = f"[{index}]"
        if not isinstance(row, dict):
            raise TrainingError(f"{path}: {where}: expected a person with image, center, scale, joints and joints_vis")
        joints[index] = numbers(path, f"{where}.joints", row.get("joints"), (JOINTS, 2)) - 1
        visible[index] = numbers(path, f"{where}.joints_vis", row.get("joints_vis"), (JOINTS,)) > 0
        squares[index] = _square(path, where, row, config.box_padding)
        name = picture_path(path, f"{where}.image", folder, row.get("image"))
        picture[index] = pictures.setdefault(name, len(pictures))
    return People(
        keypoints=MPII,
        pictures=list(pictures),
        picture=picture,
        squares=squares,
        joints=joints,
        visible=visible,
        head_px=lengths(joints, visible, MPII, HEAD),
        upright=stands_upright(joints, visible, MPII),
        image_ids=picture.copy(),
    )


def _square(path: Path, where: str, row: dict[str, Any], padding: float) -> NDArray[np.float64]:
    centre = numbers(path, f"{where}.center", row.get("center"), (2,))
    scale = float(numbers(path, f"{where}.scale", row.get("scale"), ()))
    if scale <= 0:
        raise TrainingError(f"{path}: {where}.scale: is {scale:g}, expected more than 0")
    side = PERSON_PX * scale * padding
    # From 1-based pixel indices to edge coordinates.
    middle = centre - 0.5 + np.array([0.0, CENTRE_DOWN_PX * scale])
    return np.array([*(middle - side / 2), side])


def _with_head_boxes(people: People, path: Path) -> People:
    """Head sizes from the official measure's file, whose people are in the same order."""
    from dataclasses import replace

    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise TrainingError(f"{path}: needs scipy, which is missing: pip install 'signet[train]'") from error
    try:
        boxes = np.asarray(loadmat(path)["headboxes_src"], np.float64)
    except Exception as error:  # a damaged file raises nearly anything
        raise TrainingError(f"{path}: headboxes_src: cannot be read: {error}") from error
    if boxes.shape != (2, 2, len(people)):
        raise TrainingError(f"{path}: headboxes_src: has shape {list(boxes.shape)}, expected [2, 2, {len(people)}]")
    return replace(people, head_px=HEAD_BOX_SHARE * np.linalg.norm(boxes[1] - boxes[0], axis=0))
