"""A pose data set: read where it lies, and as loaders for Lightning's Trainer."""

from __future__ import annotations

from pathlib import Path

from training.data.catalog import data_root
from training.data.loaders import Loader
from training.data.module import RecipeData
from training.data.plan import BatchPlan
from training.pose import coco, lspet, mpii
from training.pose.config import CocoData, LspetData, PoseData
from training.pose.loaders import PoseBatch, PoseLoader
from training.pose.people import PoseDataset
from training.recipe import Recipe


def load(config: PoseData, root: Path | None = None) -> PoseDataset:
    """Read the data set of a recipe; `root` as in `training.data.catalog.load`.

    Raises TrainingError naming what is missing or damaged.
    """
    found = data_root(config, root)
    if isinstance(config, LspetData):
        return lspet.read(found, config)
    return coco.read(found, config) if isinstance(config, CocoData) else mpii.read(found, config)


class PeopleData(RecipeData):
    """People cut out of their pictures."""

    def __init__(self, dataset: PoseDataset, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.dataset = dataset

    def length(self, *, training: bool) -> int:
        return len(self.dataset.train if training else self.dataset.validation)

    def loader(self, plan: BatchPlan, *, training: bool) -> Loader[PoseBatch]:
        data = self.recipe.data
        assert isinstance(data, PoseData)
        return PoseLoader(
            self.dataset.train if training else self.dataset.validation,
            plan,
            size=self.dataset.input.height,
            augment=data.augment if training else None,
            storage=data.storage,
            workers=data.workers,
            device=self.device,
        )
