"""Image folders: the split, the pixels, the errors; from memory and from files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import imagefolder
from training.data.dataset import Files, Pixels
from training.data.loaders import FileLoader
from training.data.pictures import centre_crop, random_resized_crop
from training.data.plan import BatchPlan, generator
from training.errors import TrainingError
from training.recipe import ImageFolderData, LargeImageAugment


def config(**fields: Any) -> ImageFolderData:
    return ImageFolderData(name="imagefolder", **{"image_size": 32, **fields})


def test_a_share_of_each_class_is_held_out_the_same_for_the_same_seed(picture_folder: Path) -> None:
    dataset = imagefolder.read(picture_folder, config())
    assert dataset.class_names == ("blue", "green", "red")
    assert torch.bincount(dataset.train.labels).tolist() == [8, 8, 8]
    assert torch.bincount(dataset.validation.labels).tolist() == [2, 2, 2]
    again = imagefolder.read(picture_folder, config())
    other = imagefolder.read(picture_folder, config(split_seed=1))
    assert torch.equal(dataset.train.images, again.train.images)
    assert not torch.equal(dataset.train.images, other.train.images)


def test_the_splits_share_no_picture_and_miss_none(picture_folder: Path) -> None:
    dataset = imagefolder.read(picture_folder, config(storage="files"))
    assert isinstance(dataset.train, Files)
    assert isinstance(dataset.validation, Files)
    found = [*dataset.train.paths, *dataset.validation.paths]
    assert sorted(found) == sorted(path for path in picture_folder.rglob("*") if path.is_file())
    for split in (dataset.train, dataset.validation):
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            assert path.parent.name == dataset.class_names[label]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "test"])
def test_folders_that_are_split_already_stay_so(validation: str, picture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(picture_folder, tmp_path / "train")
    for name in ("red", "blue"):
        shutil.copytree(picture_folder / name, tmp_path / validation / name)
    dataset = imagefolder.read(tmp_path, config())
    assert (len(dataset.train), len(dataset.validation)) == (30, 20)
    assert torch.bincount(dataset.validation.labels).tolist() == [10, 0, 10]


def test_pixels_are_the_middle_of_the_picture(picture_folder: Path) -> None:
    dataset = imagefolder.read(picture_folder, config(storage="memory"))
    assert isinstance(dataset.train, Pixels)
    colours = {"red": (220, 40, 30), "green": (40, 200, 60), "blue": (30, 60, 220)}
    for label, name in enumerate(dataset.class_names):
        mean = dataset.train.images[dataset.train.labels == label].double().mean((0, 1, 2))
        assert torch.allclose(mean, torch.tensor(colours[name]).double(), atol=12)
    picture = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    assert np.array_equal(centre_crop(Image.fromarray(picture), 32, 40), picture[4:36, 14:46])


def test_what_training_cuts_out_is_described_for_serving(picture_folder: Path) -> None:
    small, large = (imagefolder.read(picture_folder, config(image_size=size)).input for size in (64, 224))
    assert (small.height, small.resize.mode, small.resize.short_side_px) == (64, "crop", 64)
    assert (large.height, large.resize.mode, large.resize.short_side_px) == (224, "crop", 256)


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_a_corrupt_picture_is_named(storage: str, picture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(picture_folder, tmp_path / "p")
    victim = tmp_path / "p" / "green" / "4.jpg"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"green/4\.jpg: cannot be decoded as a picture"):
        read_all(tmp_path / "p", storage, workers=0)


def test_a_corrupt_picture_is_named_by_a_worker_process_too(picture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(picture_folder, tmp_path / "p")
    (tmp_path / "p" / "red" / "7.jpg").write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match=r"^[^\n]*red/7\.jpg: cannot be decoded as a picture[^\n]*$"):
        read_all(tmp_path / "p", "files", workers=1)


def read_all(root: Path, storage: str, workers: int) -> None:
    dataset = imagefolder.read(root, config(storage=storage))
    for split in (dataset.train, dataset.validation):
        if isinstance(split, Files):
            plan = BatchPlan(len(split), 5, shuffle=False)
            for _ in FileLoader(split, plan, side=32, short_side=36, workers=workers):
                pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.rmdir(), "is no folder"),
        (lambda root: None, "expected two or more sub-folders .* found none"),
        (lambda root: (root / "one").mkdir(), "found only 'one'"),
        (lambda root: [(root / name).mkdir() for name in ("a", "b")], r"a: holds no pictures \(\.bmp"),
    ],
)
def test_a_folder_that_is_none(make: Any, message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(TrainingError, match=message):
        imagefolder.read(root, config())


def test_a_class_that_is_only_validated_is_named(picture_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(picture_folder, tmp_path / "train")
    shutil.copytree(picture_folder, tmp_path / "val")
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "scarlet")
    with pytest.raises(TrainingError, match=r"val/scarlet: this class is not in"):
        imagefolder.read(tmp_path, config())


def test_too_few_pictures_to_hold_any_out(picture_folder: Path, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        shutil.copy(picture_folder / name / "0.png", tmp_path / name)
    with pytest.raises(TrainingError, match="1 pictures are too few to hold out 1"):
        imagefolder.read(tmp_path, config())


def test_the_middle_is_resized_as_if_the_whole_were() -> None:
    random = np.random.default_rng(0)
    for height, width, side, short_side in ((120, 90, 32, 40), (33, 71, 24, 24), (30, 30, 30, 30), (9, 40, 32, 36)):
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        picture = picture.resize(
            (2 * width, 2 * height), Image.Resampling.BICUBIC
        )  # neighbours are alike, as in photographs
        scale = short_side / min(picture.size)
        whole = picture.resize(tuple(round(n * scale) for n in picture.size), Image.Resampling.BILINEAR)
        left, top = (whole.width - side) // 2, (whole.height - side) // 2
        expected = np.asarray(whole, int)[top : top + side, left : left + side]
        assert np.abs(centre_crop(picture, side, short_side) - expected).max() <= 2  # each of two passes rounds


def test_a_strip_is_cut_before_it_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it would be 256 x 16,768,000 px."""
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k)
    )
    assert centre_crop(Image.new("RGB", (1, 65_500), (9, 8, 7)), 224, 256).tolist() == [[[9, 8, 7]] * 224] * 224
    assert sizes == [(224, 224)]


def test_random_crops_are_reproducible_and_within_the_limits() -> None:
    """Of a picture whose red is its row and green its column, a crop's corners tell what was cut out."""
    rows, columns = np.mgrid[0:200, 0:240].astype(np.uint8)
    picture = Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1))
    augment = LargeImageAugment(crop_area=(0.25, 0.5), crop_aspect=(0.8, 1.25), flip=True)
    flipped = 0
    for seed in range(60):
        crop = random_resized_crop(picture, 64, augment, generator(seed)).astype(float)
        assert np.array_equal(crop, random_resized_crop(picture, 64, augment, generator(seed)).astype(float))
        height = (crop[-1, 0, 0] - crop[0, 0, 0]) * 64 / 63
        width = (crop[0, -1, 1] - crop[0, 0, 1]) * 64 / 63
        flipped += width < 0
        assert 0.22 <= height * abs(width) / (200 * 240) <= 0.54
        assert 0.76 <= abs(width) / height <= 1.32
    assert 15 < flipped < 45


def test_pictures_lie_upright(tmp_path: Path) -> None:
    """EXIF orientation 6: what is stored left to right is seen top to bottom."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:, :30] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        for index in range(2):
            Image.fromarray(stored).save(tmp_path / name / f"{index}.png", exif=exif)
    dataset = imagefolder.read(tmp_path, config(validation_share=0.5))
    image = dataset.train.images[0].double()
    assert image[:14].mean() > 240
    assert image[18:].mean() < 15
