"""Each layout is read as it is, and mistakes in it are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.pose import COCO, LSP, MPII
from tests.helpers.people import find_dots
from training.errors import TrainingError
from training.pose import coco, lspet, mpii
from training.pose.config import CocoData, LspetData, MpiiData
from training.pose.people import People, stands_upright

LSPET, MPII_DATA, COCO_DATA = LspetData(name="lspet"), MpiiData(name="mpii"), CocoData(name="coco")


def assert_joints_lie_on_their_dots(people: People, size: int = 192) -> None:
    for index in range(len(people)):
        sample = people.sample(index, size)
        assert sample.crop.shape == (size, size, 3)
        dots = find_dots(sample.crop, len(sample.joints))
        seen = sample.visible & ~np.isnan(dots[:, 0])
        assert seen.sum() > 0.6 * sample.visible.sum()
        assert np.abs(dots - sample.joints)[seen].max() < 1
        homogeneous = np.concatenate([sample.joints, np.ones((len(sample.joints), 1))], axis=1)
        back = homogeneous @ sample.to_picture.T
        np.testing.assert_allclose(back[sample.visible], people.joints[index][sample.visible], atol=1e-6)


@pytest.mark.parametrize("framing", ["person", "picture"])
def test_lspet_crops(lspet_root: Path, framing: str) -> None:
    dataset = lspet.read(lspet_root, LspetData(name="lspet", framing=framing))
    assert (len(dataset.train), len(dataset.validation)) == (24, 8)
    assert dataset.keypoints == LSP
    assert dataset.train.visible[:, 5].sum() == 16
    assert dataset.validation.upright.tolist() == [False, True] * 4
    assert_joints_lie_on_their_dots(dataset.train)
    assert_joints_lie_on_their_dots(dataset.validation)


def test_lspet_head_and_square(lspet_root: Path) -> None:
    people = lspet.read(lspet_root, LSPET).validation
    joints = people.joints[3]
    assert people.head_px[3] == pytest.approx(np.hypot(*(joints[12] - joints[13])))
    extent = np.ptp(joints, axis=0)
    assert people.squares[3, 2] == pytest.approx(1.25 * extent.max())
    middle = people.squares[3, :2] + people.squares[3, 2] / 2
    np.testing.assert_allclose(middle, joints.min(axis=0) + extent / 2 + 0.5)


def test_the_public_archives_of_lsp(lsp_folders: Path) -> None:
    dataset = lspet.read(lsp_folders, LSPET)
    assert len(dataset.train) == 3 + 5
    assert len(dataset.validation) == 3
    assert dataset.validation.visible.all()
    assert dataset.train.visible[3:].sum(axis=1).tolist() == [10] * 5
    assert_joints_lie_on_their_dots(dataset.train)
    assert_joints_lie_on_their_dots(dataset.validation)


def test_mpii(mpii_root: Path) -> None:
    dataset = mpii.read(mpii_root, MPII_DATA)
    people = dataset.train
    assert dataset.keypoints == MPII
    assert people.picture.tolist() == [0, 1, 1]
    assert people.visible.sum(axis=1).tolist() == [15] * 3
    left, top, side = people.squares[0]
    assert side == 400
    assert (left + side / 2, top + side / 2) == (199.5, 189.5 + 15 * 1.6)
    assert_joints_lie_on_their_dots(people, 256)


def test_mpiis_official_head_sizes(mpii_root: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    boxes = np.zeros((2, 2, 3))
    boxes[1] = [[30, 60, 3], [40, 80, 4]]
    savemat(mpii_root / "annot" / "gt_valid.mat", {"headboxes_src": boxes})
    dataset = mpii.read(mpii_root, MPII_DATA)
    np.testing.assert_allclose(dataset.validation.head_px, [30, 60, 3])
    neck, top = dataset.train.joints[0][8], dataset.train.joints[0][9]
    assert dataset.train.head_px[0] == pytest.approx(np.hypot(*(neck - top)))


def test_coco(coco_root: Path) -> None:
    dataset = coco.read(coco_root, COCO_DATA)
    people = dataset.validation
    assert dataset.keypoints == COCO
    assert len(people) == 2
    assert people.visible.sum(axis=1).tolist() == [16, 16]
    np.testing.assert_allclose(people.squares[0], [0, 0, 300])
    np.testing.assert_allclose(people.squares[1], [50 - 187.5, 150 - 187.5, 375])
    assert people.image_ids.tolist() == [7, 7]
    assert dataset.annotations == coco_root / "annotations" / "person_keypoints_val2017.json"
    assert_joints_lie_on_their_dots(people, 256)


def test_fewer_people(lspet_root: Path) -> None:
    dataset = lspet.read(lspet_root, LspetData(name="lspet", train_people=5, validation_people=3))
    assert (len(dataset.train), len(dataset.validation)) == (5, 3)


def test_a_large_picture_is_decoded_small_and_stays_in_place(tmp_path: Path, mpii_root: Path) -> None:
    people = mpii.read(mpii_root, MPII_DATA).train.first(1)
    with Image.open(people.pictures[0]) as image:
        large = image.resize((image.width * 5 + 3, image.height * 5 + 1), Image.Resampling.BICUBIC)
    factor = np.array([large.width / 420, large.height / 400])
    large.save(tmp_path / "large.jpg", quality=97, subsampling=0)
    joints = (people.joints + 0.5) * factor - 0.5
    left, top, side = people.squares[0]
    square = np.array([[left * factor[0], top * factor[1], side * factor[0]]])
    fields = {name: getattr(people, name) for name in ("picture", "visible", "head_px", "upright", "image_ids")}
    enlarged = People(keypoints=MPII, pictures=[tmp_path / "large.jpg"], joints=joints, squares=square, **fields)
    assert_joints_lie_on_their_dots(enlarged, 256)


def test_upright() -> None:
    joints = np.zeros((1, 14, 2))
    joints[:, 12] = 0, -100
    for angle, expected in ((0, True), (34, True), (36, False), (180, False), (-34, True)):
        turn = np.radians(angle)
        turned = joints @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        assert stands_upright(turned, np.ones((1, 14), bool), LSP).tolist() == [expected]
    unseen = np.ones((1, 14), bool)
    unseen[0, 12] = False
    assert stands_upright(joints, unseen, LSP).tolist() == [False]


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


MPII_MISTAKES = {
    "center": (lambda c: c[1].update(center=[1.0]), r"train\.json: \[1\]\.center: expected numbers of shape \[2\]"),
    "scale": (lambda c: c[0].update(scale=0), r"train\.json: \[0\]\.scale: is 0, expected more than 0"),
    "joints": (lambda c: c[2]["joints"].pop(), r"\[2\]\.joints: expected numbers of shape \[16, 2\]"),
    "nan": (lambda c: c[2]["joints"][3].__setitem__(0, float("nan")), r"\[2\]\.joints: expected numbers"),
    "image": (lambda c: c[0].update(image="../../secret.jpg"), r"\[0\]\.image: is '\.\./\.\./secret\.jpg'"),
    "no image": (lambda c: c[0].pop("image"), r"\[0\]\.image: is None"),
    "empty": (lambda c: c.clear(), r"train\.json: expected a list of people"),
}


@pytest.mark.parametrize("mistake", MPII_MISTAKES)
def test_mistakes_in_mpii_are_named(mpii_root: Path, mistake: str) -> None:
    change, message = MPII_MISTAKES[mistake]
    edit(mpii_root / "annot" / "train.json", change)
    with pytest.raises(TrainingError, match=message):
        mpii.read(mpii_root, MPII_DATA)


COCO_MISTAKES = {
    "keypoints": (lambda c: c["annotations"][0]["keypoints"].pop(), r"annotations\[0\]\.keypoints: expected numbers"),
    "box": (lambda c: c["annotations"][0].pop("bbox"), r"annotations\[0\]\.bbox"),
    "image": (lambda c: c["annotations"][3].update(image_id=8), r"annotations\[3\]\.image_id: is 8"),
    "image list": (lambda c: c["annotations"][3].update(image_id=[7]), r"annotations\[3\]\.image_id: is \[7\]"),
    "no images": (lambda c: c.update(images=None), "images: expected a list"),
    "no annotations": (lambda c: c.update(annotations=None), "annotations: expected a list"),
    "name": (lambda c: c["images"][0].pop("file_name"), r"images\[0\]\.file_name: is None"),
    "id": (lambda c: c["images"][0].update(id="7"), r"images\[0\]\.id: expected a whole number"),
    "nobody": (lambda c: c["annotations"].clear(), "nobody has keypoints"),
    "fields": (lambda c: c.pop("images"), "expected the fields images and annotations"),
}


@pytest.mark.parametrize("mistake", COCO_MISTAKES)
def test_mistakes_in_coco_are_named(coco_root: Path, mistake: str) -> None:
    change, message = COCO_MISTAKES[mistake]
    edit(coco_root / "annotations" / "person_keypoints_train2017.json", change)
    with pytest.raises(TrainingError, match=message):
        coco.read(coco_root, COCO_DATA)


def test_missing_files_are_named(tmp_path: Path, coco_root: Path) -> None:
    with pytest.raises(TrainingError, match=r"data\.root: no LSP in .*lspet_train.*joints\.mat"):
        lspet.read(tmp_path / "none", LSPET)
    with pytest.raises(TrainingError, match=r"annot/train\.json: cannot be read"):
        mpii.read(tmp_path, MPII_DATA)
    (coco_root / "val2017" / "000000000007.jpg").unlink()
    people = coco.read(coco_root, COCO_DATA).validation
    with pytest.raises(TrainingError, match=r"000000000007\.jpg: cannot be decoded"):
        people.sample(0, 64)


def test_damaged_lspet_files_are_named(lspet_root: Path, tmp_path: Path) -> None:
    for path in lspet_root.glob("*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "lspet_test.npz"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"lspet_test\.npz: cannot be read as LSPET crops"):
        lspet.read(tmp_path, LSPET)
    with np.load(lspet_root / "lspet_test.npz") as archive:
        arrays = dict(archive)
    np.savez(damaged, **{**arrays, "joints": arrays["joints"][:-1]})
    with pytest.raises(TrainingError, match=r"lspet_test\.npz: offsets: has the shape \[9\], expected \[8\]"):
        lspet.read(tmp_path, LSPET)
    for name, value in (("upright", np.ones(3)), ("visible", np.ones((8, 13))), ("size", np.ones(8))):
        np.savez(damaged, **{**arrays, name: value})
        with pytest.raises(TrainingError, match=rf"lspet_test\.npz: {name}: has the shape .*, expected \[8"):
            lspet.read(tmp_path, LSPET)
    jpeg = arrays["jpeg"].copy()
    jpeg[arrays["offsets"][2] : arrays["offsets"][3]] = 0
    np.savez(damaged, **{**arrays, "jpeg": jpeg})
    with pytest.raises(TrainingError, match=r"lspet_test\.npz: person 2: cannot be decoded as a picture"):
        lspet.read(tmp_path, LSPET).validation.sample(2, 64)
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(damaged)
    with pytest.raises(TrainingError, match=r"lspet_test\.npz: cannot be read as LSPET crops"):
        lspet.read(tmp_path, LSPET)
    np.savez(damaged, **{**arrays, "visible": 0 * arrays["visible"]})
    with pytest.raises(TrainingError, match=r"visible: person 0 has no visible joint"):
        lspet.read(tmp_path, LSPET)


def test_a_matrix_of_another_shape_is_named(lsp_folders: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(lsp_folders / "lsp_dataset" / "joints.mat", {"joints": np.zeros((4, 14, 6))})
    with pytest.raises(TrainingError, match=r"joints\.mat: joints has shape \[4, 14, 6\]"):
        lspet.read(lsp_folders, LSPET)
