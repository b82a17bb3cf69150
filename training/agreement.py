"""How often two packed models give the same answer: what decides whether a rounded stem is good enough."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.packing.file import PackedFile
from models.packing.pack import Stem
from training.data import catalog
from training.data.loaders import Batch, Loader
from training.errors import TrainingError
from training.evaluate import evaluation_loader, load
from training.pose.config import PoseData
from training.recipe import DataConfig

LEAST_AGREEMENT = 0.995
"""Share of the validation pictures on which a rounded stem has to give the top class of the real one."""


@dataclass(frozen=True)
class Agreement:
    """The share of `images` pictures on which both models name the same class."""

    share: float
    images: int

    @property
    def enough(self) -> bool:
        """Whether it is at least `LEAST_AGREEMENT`."""
        return self.share >= LEAST_AGREEMENT

    def __str__(self) -> str:
        return f"{100 * self.share:.2f} % of {self.images} pictures get the same class"


def agreement(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], loader: Loader[Batch]) -> Agreement:
    """Compare the top classes of two predictors over one epoch of `loader`."""
    same = images = 0
    for pictures, _ in loader:
        same += int((one(pictures).argmax(1) == other(pictures).argmax(1)).sum())
        images += len(pictures)
    return Agreement(same / max(images, 1), images)


def pack_with_better_stem(
    pack: Callable[[Path, Stem], PackedFile], target: Path, data_root: Path | None, data: DataConfig | None = None
) -> tuple[PackedFile, Agreement]:
    """Pack with a real and with an 8-bit stem, and keep the 8-bit one if it agrees with the real one.

    Parameters
    ----------
    pack : writes a file with stem `float32` or `int8`.
    target : the file to write.
    data_root, data : the data set to compare on, by default that of the recipe; its validation pictures are used.

    Raises TrainingError for a network or a data set that this cannot be measured with.
    """
    with tempfile.TemporaryDirectory() as folder:
        stems: tuple[Stem, Stem] = ("float32", "int8")
        real, rounded = (load(pack(Path(folder) / f"{stem}.safetensors", stem).path) for stem in stems)
        chosen_data = data or real.data
        if chosen_data is None or isinstance(chosen_data, PoseData):
            raise TrainingError("--stem auto: compares classes of pictures, so it needs a classifier and its data set")
        dataset = catalog.load(chosen_data, data_root)
        found = agreement(real.predict, rounded.predict, evaluation_loader(dataset, chosen_data))
    return pack(target, "int8" if found.enough else "float32"), found
