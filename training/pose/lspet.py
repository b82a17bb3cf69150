"""Leeds Sports Pose (Johnson and Everingham 2010) and its extended training set (2011), 14 joints a person.

Two layouts are read. `.npz` files of crops, `lspet_train*.npz` and `lspet_test*.npz`: `jpeg` u8 with `offsets`
[N + 1], `joints` [N, 14, 2] in the crop's pixels, `visible` [N, 14], `upright` [N]. And the public archives, folders of
`images/` and `joints.mat`: the extended set's matrix is [14, 3, N] with a flag that is 1 where a joint is labelled, the
original's [3, 14, 2000] with a flag that is 1 where a joint is occluded but labelled all the same; its first 1,000
people train and its last 1,000 measure.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.pose import LSP
from training.errors import TrainingError
from training.pose.config import LspetData
from training.pose.people import (
    Encoded,
    People,
    PoseDataset,
    boxes_of_joints,
    input_spec,
    lengths,
    squares_of_boxes,
    stands_upright,
)

HEAD = ("neck", "head_top")
JOINTS = len(LSP.names)
LSP_TRAIN = 1000


def read(root: Path, config: LspetData) -> PoseDataset:
    """Read LSP and LSPET from `root`. Raises TrainingError naming what is missing or damaged."""
    npz_train, npz_test = sorted(root.glob("lspet_train*.npz")), sorted(root.glob("lspet_test*.npz"))
    if npz_train and npz_test:
        train, validation = ([_read_npz(path, config) for path in paths] for paths in (npz_train, npz_test))
    else:
        train, validation = _read_folders(root, config)
    return PoseDataset(
        "lspet",
        _join(train).first(config.train_people),
        _join(validation).first(config.validation_people),
        input_spec(config.image_size),
    )


def _read_npz(path: Path, config: LspetData) -> People:
    try:
        with np.load(path, allow_pickle=False) as archive:
            jpeg, offsets = archive["jpeg"], archive["offsets"].astype(np.int64)
            joints, visible = archive["joints"].astype(np.float64), archive["visible"] > 0
            upright, sizes = archive["upright"] > 0, archive["size"].astype(np.float64)
            ids = archive["orig_id"].astype(np.int64)
    except Exception as error:  # a damaged archive raises nearly anything
        raise TrainingError(f"{path}: cannot be read as LSPET crops: {error}") from error
    count = len(joints) if joints.ndim else 0
    for name, array, shape in (
        ("offsets", offsets, (count + 1,)),
        ("joints", joints, (count, JOINTS, 2)),
        ("visible", visible, (count, JOINTS)),
        ("upright", upright, (count,)),
        ("size", sizes, (count, 2)),
        ("orig_id", ids, (count,)),
    ):
        if array.shape != shape or not count:
            raise TrainingError(f"{path}: {name}: has the shape {list(array.shape)}, expected {list(shape)}")
    if offsets[0] != 0 or offsets[-1] != jpeg.size or (np.diff(offsets) <= 0).any():
        raise TrainingError(f"{path}: offsets: expected to rise from 0 to the {jpeg.size} bytes of JPEG")
    if not visible.any(axis=1).all():
        raise TrainingError(f"{path}: visible: person {int(visible.any(axis=1).argmin())} has no visible joint")
    if not np.isfinite(joints[visible]).all():
        raise TrainingError(f"{path}: joints: expected finite numbers where visible")
    parts = enumerate(pairwise(offsets))
    pictures = [Encoded(jpeg[a:b].tobytes(), f"{path}: person {index}") for index, (a, b) in parts]
    if config.framing == "picture":
        squares = squares_of_boxes(np.concatenate([np.zeros_like(sizes), sizes], axis=1), 1.0)
    else:
        squares = squares_of_boxes(boxes_of_joints(joints, visible), config.box_padding)
    return People(
        keypoints=LSP,
        pictures=pictures,
        picture=np.arange(len(pictures)),
        squares=squares,
        joints=joints,
        visible=visible,
        head_px=lengths(joints, visible, LSP, HEAD),
        upright=upright,
        image_ids=ids,
    )


def _read_folders(root: Path, config: LspetData) -> tuple[list[People], list[People]]:
    train: list[People] = []
    validation: list[People] = []
    found = sorted(path for path in (root, *root.glob("*")) if (path / "joints.mat").is_file())
    for folder in found:
        extended, joints, labelled = _read_mat(folder / "joints.mat")
        pictures = sorted((folder / "images").glob("*.jpg"))
        if len(pictures) != len(joints):
            raise TrainingError(
                f"{folder / 'images'}: holds {len(pictures)} .jpg files, joints.mat {len(joints)} people"
            )
        if config.framing == "picture":
            raise TrainingError("data.framing: 'picture' is for the .npz crops; these pictures show more than a person")
        people = People(
            keypoints=LSP,
            pictures=pictures,
            picture=np.arange(len(pictures)),
            squares=squares_of_boxes(boxes_of_joints(joints, labelled), config.box_padding),
            joints=joints,
            visible=labelled,
            head_px=lengths(joints, labelled, LSP, HEAD),
            upright=stands_upright(joints, labelled, LSP),
            image_ids=np.arange(len(pictures)),
        ).take(np.flatnonzero(labelled.any(axis=1)))
        if extended:
            train.append(people)
        else:
            half = min(LSP_TRAIN, len(people) // 2)
            train.append(people.take(np.arange(half)))
            validation.append(people.take(np.arange(half, len(people))))
    if not train or not validation:
        raise TrainingError(
            f"data.root: no LSP in {root}: looked for lspet_train*.npz and lspet_test*.npz, and for joints.mat beside "
            "images/ of the original set (whose second half measures) and of the extended one"
        )
    return train, validation


def _read_mat(path: Path) -> tuple[bool, NDArray[np.float64], NDArray[np.bool_]]:
    """Whether this is the extended set, joints [N, 14, 2], and which of them are labelled [N, 14]."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise TrainingError(f"{path}: needs scipy, which is missing: pip install 'signet[train]'") from error
    try:
        matrix = np.asarray(loadmat(path)["joints"], np.float64)
    except Exception as error:  # a damaged file raises nearly anything
        raise TrainingError(f"{path}: cannot be read as joints: {error}") from error
    if matrix.ndim == 3 and matrix.shape[:2] == (JOINTS, 3):
        rows = matrix.transpose(2, 0, 1)
        return True, rows[..., :2], rows[..., 2] >= 0.5
    if matrix.ndim == 3 and matrix.shape[:2] == (3, JOINTS):
        rows = matrix.transpose(2, 1, 0)
        return False, rows[..., :2], np.asarray(np.isfinite(rows[..., :2]).all(axis=-1))
    raise TrainingError(f"{path}: joints has shape {list(matrix.shape)}, expected [14, 3, N] or [3, 14, N]")


def _join(parts: list[People]) -> People:
    pictures = [picture for part in parts for picture in part.pictures]
    starts = np.cumsum([0, *(len(part.pictures) for part in parts)])
    return People(
        keypoints=LSP,
        pictures=pictures,
        picture=np.concatenate([part.picture + start for part, start in zip(parts, starts, strict=False)]),
        squares=np.concatenate([part.squares for part in parts]),
        joints=np.concatenate([part.joints for part in parts]),
        visible=np.concatenate([part.visible for part in parts]),
        head_px=np.concatenate([part.head_px for part in parts]),
        upright=np.concatenate([part.upright for part in parts]),
        image_ids=np.concatenate([part.image_ids for part in parts]),
    )
