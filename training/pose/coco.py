"""COCO keypoints (Lin et al. 2014), 17 joints a person, from the official JSON files; people by their boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.pose import COCO
from training.errors import TrainingError
from training.pose.config import CocoData
from training.pose.listing import load_json, numbers, picture_path
from training.pose.people import People, PoseDataset, input_spec, squares_of_boxes, stands_upright

JOINTS = len(COCO.names)


def read(root: Path, config: CocoData) -> PoseDataset:
    """Read COCO keypoints from `root`: everybody who has a labelled joint and is no crowd.

    Raises TrainingError naming the file and field that is missing or wrong.
    """
    annotations = root / config.validation_annotations
    return PoseDataset(
        "coco",
        _read(root / config.train_annotations, root / config.train_images, config).first(config.train_people),
        _read(annotations, root / config.validation_images, config).first(config.validation_people),
        input_spec(config.image_size),
        annotations=annotations,
    )


def _read(path: Path, folder: Path, config: CocoData) -> People:
    content = load_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        raise TrainingError(f"{path}: expected the fields images and annotations")
    for name in ("images", "annotations"):
        if not isinstance(content[name], list):
            raise TrainingError(f"{path}: {name}: expected a list")
    files = {}
    for index, image in enumerate(content["images"]):
        if not isinstance(image, dict) or type(image.get("id")) is not int:
            raise TrainingError(f"{path}: images[{index}].id: expected a whole number")
        files[image["id"]] = picture_path(path, f"images[{index}].file_name", folder, image.get("file_name"))
    known = {number: index for index, number in enumerate(files)}
    rows = [
        (f"annotations[{index}]", row)
        for index, row in enumerate(content["annotations"])
        if isinstance(row, dict) and row.get("num_keypoints", 0) and not row.get("iscrowd", 0)
    ]
    if not rows:
        raise TrainingError(f"{path}: annotations: nobody has keypoints")
    joints = np.empty((len(rows), JOINTS, 3))
    boxes = np.empty((len(rows), 4))
    ids = np.empty(len(rows), np.int64)
    for index, (where, row) in enumerate(rows):
        flat = numbers(path, f"{where}.keypoints", row.get("keypoints"), (3 * JOINTS,))
        joints[index] = flat.reshape(JOINTS, 3)
        boxes[index] = numbers(path, f"{where}.bbox", row.get("bbox"), (4,))
        if type(row.get("image_id")) is not int or row["image_id"] not in known:
            raise TrainingError(f"{path}: {where}.image_id: is {row.get('image_id')!r}, which images do not have")
        ids[index] = row["image_id"]
    visible = joints[..., 2] > 0
    return People(
        keypoints=COCO,
        pictures=list(files.values()),
        picture=np.array([known[number] for number in ids.tolist()], np.int64),
        squares=squares_of_boxes(boxes, config.box_padding),
        joints=joints[..., :2].copy(),
        visible=visible,
        head_px=np.full(len(rows), np.nan),
        upright=stands_upright(joints[..., :2], visible, COCO),
        image_ids=ids,
    )
