"""PCK and PCKh against cases counted by hand, and OKS-AP against pycocotools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.pose import COCO, LSP, MPII
from training.errors import TrainingError
from training.pose import coco, lspet, oks
from training.pose.config import CocoData, LspetData
from training.pose.metrics import pck, score
from training.pose.people import People, lengths

NAN = float("nan")


def people_of(joints: np.ndarray, visible: np.ndarray, keypoints=LSP, upright=None) -> People:
    count = len(joints)
    return People(
        keypoints=keypoints,
        pictures=[b""] * count,
        picture=np.arange(count),
        squares=np.tile([0.0, 0.0, 100.0], (count, 1)),
        joints=joints,
        visible=visible,
        head_px=lengths(joints, visible, keypoints, ("neck", "head_top")),
        upright=np.ones(count, bool) if upright is None else upright,
        image_ids=np.arange(count),
    )


def test_pck_counted_by_hand() -> None:
    joints = np.zeros((2, 3, 2))
    # Person 0 has length 10, so half of it is 5: distances 5, 5.01, invisible. Person 1: length unknown.
    predicted = joints + np.array([[[3, 4], [5.01, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
    visible = np.array([[True, True, False], [True, True, True]])
    result = pck(predicted, joints, visible, np.array([10.0, NAN]), 0.5, ("a", "b", "c"))
    assert result.per_joint["a"] == 100
    assert result.per_joint["b"] == 0
    assert np.isnan(result.per_joint["c"])
    assert result.mean == 50
    assert result.counted.tolist() == [1, 1, 0]


def test_unmeasured_joints_are_left_out_of_the_mean_alone() -> None:
    joints = np.zeros((1, 2, 2))
    predicted = np.array([[[0.0, 0.0], [9.0, 0.0]]])
    result = pck(predicted, joints, np.ones((1, 2), bool), np.array([1.0]), 0.5, ("a", "b"), ("b",))
    assert result.mean == 100
    assert result.per_joint["b"] == 0


def test_lengths_are_those_of_lsp() -> None:
    """PCK's torso is joint 9 to joint 2, PCKh's head 12 to 13."""
    random = np.random.default_rng(0)
    joints, visible = random.normal(0, 50, (4, 14, 2)), np.ones((4, 14), bool)
    visible[3, 13] = visible[2, 2] = False
    people = people_of(joints, visible)
    torso, head = (
        np.linalg.norm(joints[:, 9] - joints[:, 2], axis=1),
        np.linalg.norm(joints[:, 12] - joints[:, 13], axis=1),
    )
    offset = np.zeros((4, 14, 2))
    offset[:, :7, 0] = 0.199 * torso[:, None]
    offset[:, 7:, 1] = 0.201 * torso[:, None]
    result = score(joints + offset, people)
    assert result.pck["all"].counted.tolist() == [3 * (k != 13) + 2 * (k == 13) for k in range(14)]
    assert [result.pck["all"].per_joint[name] for name in LSP.names] == [100] * 7 + [0] * 7
    offset[:, :7, 0], offset[:, 7:, 1] = 0.499 * head[:, None], 0.501 * head[:, None]
    result = score(joints + offset, people)
    assert result.pckh["all"].counted[0] == 3
    assert [result.pckh["all"].per_joint[name] for name in LSP.names] == [100] * 7 + [0] * 7


def test_upright_people_are_counted_apart() -> None:
    joints = np.random.default_rng(1).normal(0, 50, (2, 14, 2))
    visible = np.ones((2, 14), bool)
    people = people_of(joints, visible, upright=np.array([True, False]))
    predicted = joints + np.array([0, 1000.0])[:, None, None]
    result = score(predicted, people)
    assert result.values() == {"pck": 50, "pck_upright": 100, "pckh": 50, "pckh_upright": 100}
    assert str(result) == (
        "PCK@0.2 50.00 %  PCK@0.2 upright 100.00 %  PCKh@0.5 50.00 %  PCKh@0.5 upright 100.00 %  n = 2"
    )
    lines = result.table().splitlines()
    assert len(lines) == 1 + 14 + 1
    assert lines[-1].split() == ["mean", "50.0", "100.0", "50.0", "100.0"]


def test_a_skeleton_without_a_head_has_no_pckh() -> None:
    joints = np.random.default_rng(1).normal(0, 50, (2, 17, 2))
    result = score(joints, people_of(joints, np.ones((2, 17), bool), COCO))
    assert result.values() == {"pck": 100, "pck_upright": 100}
    assert "PCKh" not in result.table()


def test_mpiis_torso_has_the_same_ends() -> None:
    joints = np.random.default_rng(1).normal(0, 50, (2, 16, 2))
    people = people_of(joints, np.ones((2, 16), bool), MPII)
    assert score(joints, people).pck["all"].counted.tolist() == [2] * 16


def test_the_mean_pose_of_lspet_scores_what_is_known(data: Path) -> None:
    """An independent count found 4.3 % and 5.5 %."""
    dataset = lspet.read(data, LspetData(name="lspet", framing="picture"))
    crop_joints, visible = dataset.train.crop_joints(100), dataset.train.visible[..., None]
    mean = (crop_joints * visible).sum(axis=0) / visible.sum(axis=0)
    people = dataset.validation
    points = people.picture_points(np.repeat(mean[None], len(people), axis=0), np.arange(len(people)), 100)
    values = score(points, people).values()
    assert values["pck"] == pytest.approx(4.3, abs=0.05)
    assert values["pckh"] == pytest.approx(5.5, abs=0.05)


def official(annotations: Path, entries: list) -> np.ndarray:
    pytest.importorskip("pycocotools")
    from pycocotools import coco as api
    from pycocotools.cocoeval import COCOeval

    truth = api.COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(entries), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def perturbed(people: People, share: float) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 1, people.joints.shape)
    return people.joints + noise * share * people.squares[:, None, 2:]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05])
def test_oks_ap_is_pycocotools_own(data: Path, share: float) -> None:
    folder = data / "pose_samples_coco"
    fields = {f"{split}_annotations": Path("test_coco.json") for split in ("train", "validation")}
    images = {f"{split}_images": Path() for split in ("train", "validation")}
    people = coco.read(folder, CocoData(name="coco", **fields, **images)).validation
    points = perturbed(people, share)
    entries = oks.results(points, people.visible.astype(float), people)
    found = oks.average_precision(folder / "test_coco.json", entries, people)
    stats = official(folder / "test_coco.json", entries)
    for name, value in zip(oks.NAMES, stats, strict=True):
        assert found.get(name, -100) == pytest.approx(100 * value)
    if share == 0:
        assert found["ap"] == pytest.approx(100)
    else:
        assert 0 < found["ap"] < 100


def test_oks_ap_of_one_person_by_the_formula(coco_root: Path) -> None:
    """One person; OKS = mean over labelled joints of exp(-d^2 / (2 area (2 sigma)^2))."""
    pytest.importorskip("pycocotools")
    path = coco_root / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:1]
    path.write_text(json.dumps(content))
    people = coco.read(coco_root, CocoData(name="coco")).validation
    sigmas = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
    for distance in (2.0, 10.0, 18.0):
        entries = oks.results(people.joints + np.array([distance, 0]), np.ones((1, 17)), people)
        similarity = np.exp(-(distance**2) / (2 * 30000.0 * (2 * sigmas) ** 2))[people.visible[0]].mean()
        passed = (similarity >= np.linspace(0.5, 0.95, 10)).mean()
        assert oks.average_precision(path, entries, people)["ap"] == pytest.approx(100 * passed)


def test_people_that_were_left_out_do_not_count(coco_root: Path) -> None:
    pytest.importorskip("pycocotools")
    path = coco_root / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 8, "file_name": "000000000007.jpg"})
    content["annotations"].append({**content["annotations"][0], "id": 9, "image_id": 8})
    content["annotations"] = [a for a in content["annotations"] if a["id"] in (1, 9)]
    path.write_text(json.dumps(content))
    people = coco.read(coco_root, CocoData(name="coco", validation_people=1)).validation
    entries = oks.results(people.joints, np.ones((1, 17)), people)
    assert oks.average_precision(path, entries, people)["ap"] == pytest.approx(100)


def test_a_missing_pycocotools_is_named(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    people = coco.read(coco_root, CocoData(name="coco")).validation
    with pytest.raises(TrainingError, match="pycocotools"):
        oks.average_precision(Path("x"), [], people)
