"""From a recipe's `data` to the data set itself, wherever the user keeps it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from training.data import cifar10, imagefolder
from training.data.dataset import Dataset, Pixels, Split
from training.errors import TrainingError
from training.pose.config import PoseData
from training.recipe import Cifar10Data, ClassificationConfig

ROOT_VARIABLE = "SIGNET_DATA"


def load(config: ClassificationConfig, root: Path | None = None) -> Dataset:
    """Read the data set of a classification recipe (`training.pose.data.load` reads those of poses).

    `root` (the command line's) comes before the recipe's `data.root`, and that before SIGNET_DATA.
    Raises TrainingError naming what is missing or damaged.
    """
    found = data_root(config, root)
    if isinstance(config, Cifar10Data):
        dataset = cifar10.read(found, config.image_size)
        return replace(
            dataset,
            train=_first(dataset.train, config.train_images),
            validation=_first(dataset.validation, config.validation_images),
        )
    return imagefolder.read(found, config)


def data_root(config: ClassificationConfig | PoseData, root: Path | None = None) -> Path:
    """The folder (or file) that the data set is read from. Raises TrainingError unless it exists."""
    variable = os.environ.get(ROOT_VARIABLE)
    sources = (("--data", root), ("data.root", config.root), (ROOT_VARIABLE, Path(variable) if variable else None))
    for source, path in sources:
        if path is None:
            continue
        if not path.exists():
            raise TrainingError(f"{source}: {path} does not exist; expected the folder that holds {config.name}")
        return path
    raise TrainingError(
        f"data.root: nothing says where {config.name} lies: give --data FOLDER, set data.root in the recipe, "
        f"or set the environment variable {ROOT_VARIABLE}"
    )


def _first(split: Split, count: int | None) -> Split:
    if count is None or not isinstance(split, Pixels):
        return split
    return Pixels(split.images[:count], split.labels[:count])
