"""Joints that go through crop, heatmap and decoding come back to where they were in the original picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.pose import STRIDE, decode
from training.pose import coco, lspet, mpii
from training.pose.config import CocoData, LspetData, MpiiData
from training.pose.heatmaps import targets
from training.pose.people import People


def assert_round_trip(people: People, size: int) -> None:
    joints = torch.from_numpy(people.crop_joints(size))
    heatmaps = targets(joints, size // STRIDE, 1.0).permute(0, 2, 3, 1).numpy()
    points, _ = decode(heatmaps)
    back = people.picture_points(points, np.arange(len(people)), size)
    half_cell_px = people.squares[:, 2] / size * STRIDE / 2
    inside = ((joints >= -0.5) & (joints <= size - 0.5)).all(dim=2).numpy()
    checked = people.visible & inside
    error = np.abs(back - people.joints).max(axis=2)
    assert (error <= half_cell_px[:, None] + 1e-3)[checked].all()
    assert checked.sum() > 0.9 * people.visible.sum()


def samples(name: str) -> dict[str, Path]:
    fields = {f"{split}_annotations": Path(f"test_{name}.json") for split in ("train", "validation")}
    return fields | {f"{split}_images": Path() for split in ("train", "validation")}


@pytest.mark.parametrize("size", [128, 192, 256])
@pytest.mark.parametrize("name", ["lspet", "mpii", "coco"])
def test_made_up_people(name: str, size: int, lspet_root: Path, mpii_root: Path, coco_root: Path) -> None:
    people = {
        "lspet": lambda: lspet.read(lspet_root, LspetData(name="lspet")),
        "mpii": lambda: mpii.read(mpii_root, MpiiData(name="mpii")),
        "coco": lambda: coco.read(coco_root, CocoData(name="coco")),
    }[name]().train
    assert_round_trip(people, size)


@pytest.mark.parametrize("size", [128, 256])
def test_real_people_of_mpii(data: Path, size: int) -> None:
    people = mpii.read(data / "pose_samples_mpii", MpiiData(name="mpii", **samples("mpii"))).train
    assert len(people) == 5
    assert_round_trip(people, size)
    for index in range(5):
        crop = people.sample(index, size).crop
        assert crop.std() > 20


@pytest.mark.parametrize("size", [128, 256])
def test_real_people_of_coco(data: Path, size: int) -> None:
    people = coco.read(data / "pose_samples_coco", CocoData(name="coco", **samples("coco"))).train
    assert len(people) == 12
    assert_round_trip(people, size)


@pytest.mark.parametrize("framing", ["person", "picture"])
def test_real_people_of_lspet(data: Path, framing: str) -> None:
    dataset = lspet.read(data, LspetData(name="lspet", framing=framing))
    assert (len(dataset.train), len(dataset.validation)) == (8424, 578)
    for size in (128, 192):
        assert_round_trip(dataset.validation, size)
    assert_round_trip(dataset.train, 128)
