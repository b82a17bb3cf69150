"""Any folder with one sub-folder of pictures a class, as torchvision's ImageFolder and ImageNet have it.

The folder holds the class folders, or `train/` and `val/` (also `valid/`, `validation/`, `test/`) with class
folders in each. Without a validation folder a share of each class is held out, the same for the same seed.
Classes are numbered in the order of their names.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.packing.file import InputSpec, Resize
from training.data.dataset import Dataset, Files, Pixels, Split
from training.data.pictures import centre_crop, open_rgb
from training.data.plan import generator
from training.errors import TrainingError
from training.recipe import ImageFolderData

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
TRAIN_FOLDER = "train"
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
# Statistics of ImageNet's training images, which suit photographs in general.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SHORT_SIDE_SHARE = 256 / 224

Listing = list[tuple[Path, int]]


def read(root: Path, config: ImageFolderData) -> Dataset:
    """Read an image folder; pictures are decoded now if `config.in_memory`, else batch by batch.

    Raises TrainingError naming the folder that is not as expected or the picture that cannot be decoded.
    """
    if not root.is_dir():
        raise TrainingError(f"data.root: {root} is no folder; expected one with a sub-folder of pictures a class")
    size = config.image_size
    short_side = size if config.in_memory else round(size * SHORT_SIDE_SHARE)
    train, validation, names = _splits(root, config)
    spec = InputSpec(height=size, width=size, mean=MEAN, std=STD, resize=Resize(mode="crop", short_side_px=short_side))
    splits = [_load(listing, size, short_side, config.in_memory) for listing in (train, validation)]
    return Dataset(root.resolve().name, splits[0], splits[1], names, spec)


def _splits(root: Path, config: ImageFolderData) -> tuple[Listing, Listing, tuple[str, ...]]:
    train_folder = root / TRAIN_FOLDER
    held_out = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
    if train_folder.is_dir():
        names = _class_names(train_folder)
        train = _list(train_folder, names)
        if held_out:
            unknown = sorted(set(_class_names(held_out[0])) - set(names))
            if unknown:
                raise TrainingError(f"{held_out[0] / unknown[0]}: this class is not in {train_folder}")
            return train, _list(held_out[0], names), names
    else:
        names = _class_names(root)
        train = _list(root, names)
    return (*_hold_out(train, config), names)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise TrainingError(f"{folder}: expected two or more sub-folders of pictures, one a class, found {found}")
    return names


def _list(folder: Path, names: tuple[str, ...]) -> Listing:
    listing: Listing = []
    for label, name in enumerate(names):
        pictures = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not pictures and folder.name not in VALIDATION_FOLDERS:
            raise TrainingError(f"{folder / name}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
        listing += [(path, label) for path in pictures]
    if not listing:
        raise TrainingError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return listing


def _hold_out(listing: Listing, config: ImageFolderData) -> tuple[Listing, Listing]:
    train: Listing = []
    validation: Listing = []
    for label in sorted({label for _, label in listing}):
        members = [entry for entry in listing if entry[1] == label]
        count = ceil(len(members) * config.validation_share)
        if count >= len(members):
            raise TrainingError(
                f"{members[0][0].parent}: {len(members)} pictures are too few to hold out {count} for validation"
            )
        order = torch.randperm(len(members), generator=generator(config.split_seed, label)).tolist()
        chosen = set(order[:count])
        validation += [entry for index, entry in enumerate(members) if index in chosen]
        train += [entry for index, entry in enumerate(members) if index not in chosen]
    return train, validation


def _load(listing: Listing, size: int, short_side: int, in_memory: bool) -> Split:
    labels: Tensor = torch.tensor([label for _, label in listing], dtype=torch.int64)
    paths = [path for path, _ in listing]
    if not in_memory:
        return Files(paths, labels)
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for index, path in enumerate(paths):
        images[index] = centre_crop(open_rgb(path), size, short_side)
    return Pixels(torch.from_numpy(images), labels)
